"""What a user can mend of a place: said in one line, for what is written before any work."""

import errno
import os
import stat
from pathlib import Path

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import refuse_special
from dmd2_jax.runtime.places import in_bucket

__all__ = ["check_output", "mendable"]

_PERMISSION = (
    "cannot be read or written ({said})",
    "a place that this user may use; mind its permissions, or choose another",
)
_MENDED = {
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: ("is not there", "a file or folder; mind its name"),
    errno.EISDIR: ("is a folder", "a file; move it away, or give another name"),
    errno.ENOTDIR: (
        "is a file, or lies below one",
        "a folder; move the file away, or give another name",
    ),
    errno.EEXIST: ("is there", "nothing there, or a folder; move it away, or give another name"),
    errno.ELOOP: ("is a link that leads to itself", "what it should lead to; remove it"),
    errno.ENAMETOOLONG: ("has too long a name", "a shorter one; give another"),
}
"""Error -> (what was found, what is expected and the remedy)."""


def mendable(error: OSError) -> str:
    """Return one line on an error of a disk that a user can mend; "": it is of another kind.

    Args:
      error: what reading or writing raised; without a path, or with words of its own, it says
        enough itself or nothing.
    """
    path = error.filename2 or error.filename
    if error.errno not in _MENDED or not isinstance(path, str | bytes | os.PathLike):
        return ""
    got, expected = _MENDED[error.errno]
    return f"{os.fsdecode(path)} {got.format(said=error.strerror)}, expected {expected}."


def check_output(path: str | os.PathLike, *, is_file: bool | None = None) -> None:
    """Refuse a place that cannot be written to, by what stands there now; nothing is touched.

    Args:
      path: of what is to be written; what lies in a bucket is not looked at.
      is_file: whether a file will be written there; False: a folder; None: either.

    Raises:
      Refused: if a file is in the way of a folder or a folder in that of a file, it is a pipe or
        a device, or this user may not write there.
    """
    if in_bucket(path):
        return
    place = Path(path).expanduser()
    refuse_special(place)  # a file would take the place of /dev/null
    if is_file and place.is_dir():
        raise Refused(_said(place, errno.EISDIR))
    if is_file is False and place.exists() and not place.is_dir():
        raise Refused(_said(place, errno.ENOTDIR))
    there = place.absolute() if place.is_dir() else place.absolute().parent
    while not there.exists():
        there = there.parent
    if not stat.S_ISDIR(there.stat().st_mode):
        raise Refused(_said(there, errno.ENOTDIR))
    if not os.access(there, os.W_OK | os.X_OK):
        raise Refused(_said(there, errno.EACCES))


def _said(path: Path, number: int) -> str:
    return mendable(OSError(number, os.strerror(number), str(path)))
