"""One run: asks models and adapters, scores and stores their answers, and makes the report."""
