"""What is asked: pattern files, items and their splits, prompts beside them."""
