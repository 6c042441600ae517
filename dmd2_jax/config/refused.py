"""The errors that are raised on purpose, for what a user can mend."""

import importlib.metadata
import json
from pathlib import Path

__all__ = ["Missing", "Refused", "lacks", "pip_install"]


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
      extra: of ours that has it.
    """
    return (
        f"{what} needs the package {package}, which is not installed; install it with: "
        f"{pip_install(extra)}"
    )


def pip_install(extra: str) -> str:
    """Return the command that adds one of our extras to this installation.

    dmd2_jax is on no package index, so that pip has to be told where it is: the clone, or what pip
    noted of the repository or the wheel that it installed.
    """
    clone = Path(__file__).absolute().parents[2]
    if (clone / "setup.py").is_file():
        return f'pip install -e "{"." if clone == Path.cwd() else clone}[{extra}]"'
    return f'pip install "dmd2_jax[{extra}]{_origin()}"'


def _origin() -> str:
    """Return where pip took the installed package from, as " @ URL"; "" if that is not known."""
    try:
        noted = importlib.metadata.distribution("dmd2_jax").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    if noted is None:
        return ""
    told = json.loads(noted)
    vcs = told.get("vcs_info")
    return f" @ {vcs['vcs']}+{told['url']}@{vcs['commit_id']}" if vcs else f" @ {told['url']}"
