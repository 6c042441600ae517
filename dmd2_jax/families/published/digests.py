"""digests.json in a pipeline's folder that was written here: of every file, compared at use.

Other programs pass over it. A folder without it, as those of others, is read as it is.
"""

import json
import os
from pathlib import Path

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.runtime.seal import check_reached, file_digest, is_sealed, seal

__all__ = ["DIGESTS", "check_digest", "check_plain_digests", "write_digests"]

DIGESTS = "digests.json"
"""Its name, beside model_index.json."""

_FILES = "files"
_WEIGHTS = (".safetensors", ".bin")
"""Endings of files that are compared when they are read: the others are small."""


def write_digests(folder: Path) -> None:
    """Write the digests of all files that are in a folder.

    Raises:
      OSError: if the disk refuses.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    text = json.dumps(seal({_FILES: found}), indent=2)
    (folder / DIGESTS).write_text(f"{text}\n", encoding="utf-8")


def check_plain_digests(folder: Path) -> None:
    """Compare the small files of a pipeline's folder with its digests, if it has them.

    Raises:
      Refused: naming one that is not as it was written, or is gone.
      Unreachable: if the disk does not hand one over.
    """
    for name, expected in (_recorded(folder) or {}).items():
        if not name.endswith(_WEIGHTS):
            _compare(folder, name, expected)


def check_digest(folder: Path, name: str) -> None:
    """Compare one file with the digest that its pipeline has of it, if the pipeline has any.

    Args:
      folder: of the pipeline.
      name: of the file in it, with / between folders.

    Raises:
      Refused: if it is not as it was written, is gone, or was put there since.
      Unreachable: if the disk does not hand it over.
    """
    recorded = _recorded(folder)
    if recorded is None:
        return
    if name not in recorded:
        raise Refused(
            f"{folder} has {name}, which would be read and is not in its {DIGESTS}, expected the "
            f"files that were written; remove it. If it was put there on purpose, remove {DIGESTS}."
        )
    _compare(folder, name, recorded[name])


def _compare(folder: Path, name: str, expected: str) -> None:
    try:
        found = file_digest(folder / name)
    except OSError as error:
        check_reached(error, folder / name)
        raise _refused(folder, f"{name} cannot be read ({error})") from error
    if found != expected:
        raise _refused(folder, f"{name} is not as it was written")


def _recorded(folder: Path) -> dict[str, str] | None:
    """Return name -> digest; None: the folder is another program's."""
    if not os.path.lexists(folder / DIGESTS):
        return None
    try:
        content = read_json(folder / DIGESTS)
    except (OSError, ValueError) as error:
        check_reached(error, folder / DIGESTS)
        raise _refused(folder, f"it cannot be read ({error})") from error
    files = content.get(_FILES) if is_sealed(content) else None
    # A seal that strangers made may name anything; what is read stays in the folder.
    if not isinstance(files, dict) or any(not _is_inside(name) for name in files):
        raise _refused(folder, "it is damaged itself")
    return files


def _is_inside(name: str) -> bool:
    return "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts


def _refused(folder: Path, fault: str) -> Refused:
    return Refused(
        f"{folder} does not match its {DIGESTS}: {fault}, expected the files that were written; "
        f"copy the folder again. If a file was changed on purpose, remove {DIGESTS}."
    )
