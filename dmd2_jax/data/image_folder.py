"""A folder or zip of image files, with EDM's dataset.json or a folder for each class.

Where `path` leads to is one of

    dataset.json beside the images (EDM's layout)   {"labels": [["00000/img0.png", 3], ...]}
    a folder for each class                         cat/1.png, dog/1.png; classes sorted by name,
                                                    whole numbers by value
    images alone                                    one class, 0

and, around any of these, folders or zips called train and test (or val). Without a test split
`config.data.test_fraction` of every class is held out by a fixed seed.

Files are PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or PPM, by their endings; a warning counts those
that are left out.

Source of the layout: T. Karras et al., EDM, dataset_tool.py's documented output.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.data.reading.classes import in_order, listing_of_files, shown
from dmd2_jax.data.reading.contract import Options
from dmd2_jax.data.reading.dataset import check_split, split_indices
from dmd2_jax.data.reading.decode import (
    MAX_BYTES,
    CorruptImageError,
    image_endings,
    image_size,
    is_image,
    read_image,
)
from dmd2_jax.data.reading.edm_labels import LABELS, MAX_LABEL_BYTES, edm_classes
from dmd2_jax.data.reading.files import files_of
from dmd2_jax.data.reading.folder import FileTree, Folder, listed_endings, warn_of_left_out
from dmd2_jax.data.reading.source import DecodedSource, listed
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Shaped

_LOG = logging.getLogger(__name__)

TEST_NAMES = ("test", "val", "valid", "validation")


class _Part(NamedTuple):
    """Some images of a tree: their names, also inside the folder, and classes, number or name."""

    tree: FileTree
    names: list[str]
    inner: list[str]
    classes: list[int] | list[str]


def load(
    path: str, split: str = "train", resolution: Size = 64, options: Options | None = None
) -> DecodedSource:
    """Open a folder or zip of images.

    Args:
      path: the folder or the .zip.
      split: "train", "test" or "all" (train, then test).
      resolution: that every image must have, or is given where `options.resize` says so.
      options: see `Options`.

    Returns:
      The images, read when they are asked for; sorted by name within a split.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if the layout, a label, a zip or an image is refused.
    """
    options = options or Options()
    check_split(split, ("train", "test"), "image_folder")
    parts = {name: _read_part(*place) for name, place in _places(path).items()}
    numbers, num_classes, class_names = _number(path, parts)
    wanted = [name for name in parts if split in (name, "all") or "test" not in parts]
    labels = np.concatenate([numbers[name] for name in wanted])
    files = [(parts[name].tree, file) for name in wanted for file in parts[name].names]
    # Relative to their split, so that a folder and a zip of it list the same.
    names = [f"{name}/{file}" for name in wanted for file in parts[name].inner]
    if "test" not in parts:
        chosen = split_indices(labels, split, options.test_fraction, str(path))
        labels, files = labels[chosen], [files[i] for i in chosen]
        names = [names[i] for i in chosen]

    def describe(i: int) -> str:
        return f"{files[i][0].place}/{files[i][1]}"

    def read(i: int) -> tuple[Shaped[np.ndarray, "h w c"], int]:
        tree, name = files[i]
        return read_image(tree, name, resolution, options.resize), int(labels[i])

    def content(i: int) -> bytes:
        try:
            return files[i][0].read(files[i][1], MAX_BYTES)
        except CorruptImageError:  # which is replaced as it is met
            return b""

    def size_of(i: int) -> tuple[int, int]:
        tree, name = files[i]
        return image_size(tree.read(name, MAX_BYTES))

    return DecodedSource(
        f"image_folder {Path(path).name}",
        len(files),
        read,
        describe=describe,
        resolution=resolution,
        num_classes=num_classes,
        options=options,
        class_names=class_names,
        formerly=_formerly(class_names),
        size_of=size_of,
        listing=lambda: listing_of_files(zip(names, labels.tolist(), strict=True), num_classes),
        files=lambda: files_of(
            names,
            options.digest,
            lambda i: files[i][0].size(files[i][1]),
            content,
        ),
        labels=lambda: labels,
    )


def _places(path: str) -> dict[str, tuple[FileTree, str]]:
    """Find the splits: name -> (tree, the folder in it)."""
    if not path:
        raise Refused("config.data.path is empty, expected a folder or zip of images; set it.")
    root = fetched(path).expanduser()
    if root.is_dir():
        zips = {name: root / f"{name}.zip" for name in ("train", *TEST_NAMES)}
        there = {name: file for name, file in zips.items() if file.is_file()}
        if "train" in there:
            return _named({name: (_open_zip(file), "") for name, file in there.items()})
    elif not root.is_file():
        raise Missing(
            f"config.data.path={path} does not exist, expected a folder or zip of images; mind "
            "the working directory."
        )
    elif is_image(root.name):
        raise Refused(
            f"config.data.path={path} is one image, expected a folder or zip of images; give the "
            "folder that it is in."
        )
    tree = Folder(root, _wanted) if root.is_dir() else _open_zip(root)
    base = _common_folder(tree.names)
    inner = {name[len(base) :].partition("/")[0] for name in tree.names}
    if "train" in inner and inner <= {"train", *TEST_NAMES}:
        return _named({name: (tree, f"{base}{name}/") for name in inner})
    return {"train": (tree, base)}


def _open_zip(path: Path) -> ZipFolder:
    return ZipFolder(path, _wanted, max(MAX_BYTES, MAX_LABEL_BYTES))


def _wanted(name: str) -> bool:
    return is_image(name) or name.rpartition("/")[-1] == LABELS


def _named(found: dict[str, tuple[FileTree, str]]) -> dict[str, tuple[FileTree, str]]:
    """Call the split that is not trained on "test"; with several, the first of TEST_NAMES."""
    chosen = {"train": found["train"]}
    tests = [name for name in TEST_NAMES if name in found]
    for name in tests[1:]:
        _LOG.warning("%s: left out %s: the test split is %s.", found[name][0].place, name, tests[0])
    return chosen | ({"test": found[tests[0]]} if tests else {})


def _common_folder(names: list[str]) -> str:
    """Return the folder, as "a/b/", that all the files are in; zips often have one around all."""
    if not names:
        return ""
    first, last = names[0].split("/")[:-1], names[-1].split("/")[:-1]
    common = []
    for a, b in zip(first, last, strict=False):  # sorted: what first and last share, all do
        if a != b or a in ("train", *TEST_NAMES):
            break
        common.append(a + "/")
    return "".join(common)


def _read_part(tree: FileTree, folder: str) -> _Part:
    """Find the images below a folder of the tree, and their classes."""
    inside = [name for name in tree.names if name.startswith(folder)]
    images = [name for name in inside if not name.endswith(LABELS)]
    inner = [name[len(folder) :] for name in images]
    place = f"{tree.place}/{folder}"
    if not images:
        others = f" (but {listed_endings(tree.others)})" if tree.others else ""
        raise Refused(
            f"{place} has no images{others}, expected files ending in {', '.join(image_endings())};"
            " check config.data.path, or convert them."
        )
    warn_of_left_out(tree, f"files ending in {', '.join(image_endings())}")
    if folder + LABELS in inside:
        return _Part(tree, images, inner, edm_classes(tree, folder, inner))
    tops = [name.rpartition("/")[0].partition("/")[0] for name in inner]
    if "" in tops and any(tops):
        lone = [name for name, top in zip(images, tops, strict=True) if not top]
        raise Refused(
            f"{place} has images beside folders ({listed(lone)}), expected every image in the "
            f"folder of its class, or a {LABELS}; move or remove them."
        )
    return _Part(tree, images, inner, tops)


def _number(
    path: str, parts: Mapping[str, _Part]
) -> tuple[dict[str, Shaped[np.ndarray, " n"]], int, list[str] | None]:
    """Give classes their numbers, the same in every split: (each split's labels, number, names)."""
    kinds = {type(part.classes[0]) for part in parts.values()}
    if len(kinds) > 1:
        raise Refused(
            f"{path} has a {LABELS} in one split only, expected it in each or none; add it."
        )
    if kinds == {int}:
        labels = {name: np.array(part.classes, np.int32) for name, part in parts.items()}
        return labels, max(int(np.max(array)) for array in labels.values()) + 1, None
    names = in_order(str(name) for part in parts.values() for name in part.classes)
    number = {name: i for i, name in enumerate(names)}
    labels = {
        split: np.array([number[str(name)] for name in part.classes], np.int32)
        for split, part in parts.items()
    }
    return labels, len(names), names if any(names) else None


def _formerly(class_names: list[str] | None) -> str:
    """Return how releases that numbered every folder by its spelling did it, if otherwise."""
    spelt = sorted(class_names or ())
    return (
        ""
        if spelt == (class_names or [])
        else f"by spelling: {', '.join(map(shown, spelt[:4]))}, ..."
    )
