"""The errors that are raised on purpose, for what a user can mend."""

__all__ = ["Missing", "Refused"]


class Refused(ValueError):
    """A value, a file or a request is refused; the message says got, expected and remedy.

    The command shows it in one line and ends with exit code 2. Any other exception is a fault of
    the program, and keeps its traceback.
    """


class Missing(Refused, FileNotFoundError):
    """A file or folder that was named is not there."""
