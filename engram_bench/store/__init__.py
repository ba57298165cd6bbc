"""What is kept in the user's cache folder: models and trained adapters."""
