"""The errors a user is meant to see."""


class UsageError(Exception):
    """Bad usage or bad input: a line that says which file, which place, what is wrong and how to mend it (exit 2)."""

    exit_code = 2


class MissingBackendError(UsageError):
    """The library of a backend not meant for every machine is not installed; the line says which extra brings it."""


class BaselineError(UsageError):
    """A baseline to compare with that is missing, unreadable, or of another measurement (exit 4)."""

    exit_code = 4
