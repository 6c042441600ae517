"""The errors that are raised on purpose, for what a user can mend."""

__all__ = ["Missing", "Refused", "lacks"]


class Refused(ValueError):
    """A value, a file or a request is refused; the message says got, expected and remedy.

    The command shows it in one line and ends with exit code 2. Any other exception is a fault of
    the program, and keeps its traceback.
    """


class Missing(Refused, FileNotFoundError):
    """A file or folder that was named is not there."""


def lacks(what: str, package: str, extra: str) -> str:
    """Return what is said where a package of one of our extras is not installed.

    Args:
      what: needs it.
      package: as pip names it.
      extra: of ours that has it. pip knows the installed dmd2_jax, and adds the extra to it.
    """
    return (
        f"{what} needs the package {package}, which is not installed; install it with: "
        f"pip install 'dmd2_jax[{extra}]'"
    )
