"""Errors whose message is meant for the user."""


class UsageError(Exception):
    """Bad usage or bad input; one line names the file and place, what is wrong and how to fix it (exit code 2)."""

    exit_code = 2


class MissingBackendError(UsageError):
    """An optional backend's library is not installed; the message names the extra to install."""


class BaselineError(UsageError):
    """The gate's baseline is missing, unreadable or not comparable (exit code 4)."""

    exit_code = 4
