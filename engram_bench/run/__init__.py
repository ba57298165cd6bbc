"""One run: models and adapters asked, answers scored and kept, the report made."""
