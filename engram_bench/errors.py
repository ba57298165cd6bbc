"""The one error a user is meant to see."""


class UsageError(Exception):
    """Bad usage or bad input: a line that says which file, which place, what is wrong and how to mend it (exit 2)."""
