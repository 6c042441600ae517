"""The classes of files by EDM's dataset.json: {"labels": [["00000/img0.png", 3], ...]}."""

import json
from collections.abc import Mapping

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import decode_text
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.folder import FileTree
from dmd2_jax.data.reading.source import listed

__all__ = ["LABELS", "MAX_LABEL_BYTES", "edm_classes"]

LABELS = "dataset.json"
MAX_LABEL_BYTES = 2**28
"""Of a dataset.json: ten million images."""

_MAX_CLASSES = 100_000  # ImageNet-21k has 21,841; a lying label must not make us allocate much


def edm_classes(tree: FileTree, folder: str, names: list[str]) -> list[int]:
    """Return the class of each file that the dataset.json of a folder gives.

    Args:
      tree: with the folder.
      folder: its name in the tree, "" or "a/b/".
      names: of the files, inside the folder.

    Raises:
      Refused: if it cannot be read, is of another form, or does not have exactly these files.
    """
    file = f"{tree.place}/{folder}{LABELS}"
    form = 'expected {"labels": [["00000/img0.png", 3], ...]}'
    try:
        content = json.loads(decode_text(tree.read(folder + LABELS, MAX_LABEL_BYTES), file))
    except (ValueError, RecursionError, CorruptImageError) as error:
        raise Refused(
            f"{file} cannot be read ({type(error).__name__}: {error}), {form}; make it again."
        ) from error
    entries = content.get("labels", ...) if isinstance(content, dict) else ...
    if entries is None:  # EDM's word for no labels
        return [0] * len(names)
    if not isinstance(entries, list):
        raise Refused(f"{file} has no list of labels, {form}; make it again.")
    classes: dict[str, int] = {}
    for entry in entries:
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or type(entry[1]) is not int:
            raise Refused(f"{file} has the entry {entry!r:.80}, {form}; make it again.")
        name, number = entry
        if not 0 <= number < _MAX_CLASSES or classes.setdefault(name, number) != number:
            raise Refused(
                f"{file} has class {number} for {name!r}, expected one class for each name in "
                f"0..{_MAX_CLASSES - 1}; correct it."
            )
    _check_same(file, names, classes)
    return [classes[name] for name in names]


def _check_same(file: str, names: list[str], classes: Mapping[str, int]) -> None:
    """Refuse labels that are not exactly those of the images."""
    lacking = [name for name in names if name not in classes]
    absent = sorted(classes.keys() - set(names))
    if lacking or absent:
        faults = [f"no label for {len(lacking)} images ({listed(lacking)})"] * bool(lacking)
        faults += [f"labels for {len(absent)} absent files ({listed(absent)})"] * bool(absent)
        raise Refused(
            f"{file} has {' and '.join(faults)}, expected one for each image; the copy may be "
            "incomplete."
        )
