"""NumPy files: one .npz with images and labels, or a pair of .npy files.

    DATA.npz                                images (or x, image, arr_0), labels (or y, label, arr_1)
                                            or, split, x_train y_train x_test y_test
                                            (or train_images train_labels test_images test_labels)
    FOLDER/images.npy labels.npy            or, split, train_images.npy train_labels.npy
                                            test_images.npy test_labels.npy
    FOLDER/train.npz test.npz               each as DATA.npz

Images are uint8 [n, h, w], [n, h, w, 1] or [n, h, w, 3], labels whole numbers [n] or [n, 1];
without labels there is one class. .npy images stay on disk and are read as they are used
(memory-mapped), .npz are read into memory whole. Without a test split
`config.data.test_fraction` of every class is held out by a fixed seed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.data.reading.contract import Options, Source
from dmd2_jax.data.reading.dataset import (
    ImageDataset,
    Subset,
    check_split,
    split_indices,
)
from dmd2_jax.data.reading.npz import DAMAGE, read_npz, refused
from dmd2_jax.runtime.fetched import fetched

IMAGES, LABELS = ("images", "x", "image", "arr_0"), ("labels", "y", "label", "arr_1")
"""What the arrays of images and of labels may be called."""

_TESTS = ("test", "val")
Arrays = Mapping[str, np.ndarray]


def load(
    path: str, split: str = "train", resolution: Size = 64, options: Options | None = None
) -> Source:
    """Open NumPy files.

    Args:
      path: the .npz, or the folder.
      split: "train", "test" or "all" (train, then test).
      resolution: unused; the images' own is checked by the caller.
      options: test_fraction counts.

    Returns:
      The images.

    Raises:
      FileNotFoundError: if there are no such files.
      ValueError: if an array is damaged, too large, of Python objects, or of the wrong form.
    """
    options = options or Options()
    check_split(split, ("train", "test"), "arrays")
    name = f"arrays {Path(path).name}"
    splits = _read(path)
    num_classes = max(int(labels.max(initial=0)) for _, labels in splits.values()) + 1
    if "test" in splits and split != "all":
        return ImageDataset(*splits[split], num_classes, name)
    if "test" in splits:
        images, labels = zip(*splits.values(), strict=True)
        return ImageDataset(np.concatenate(images), np.concatenate(labels), num_classes, name)
    whole = ImageDataset(*splits["train"], num_classes, name)
    chosen = split_indices(whole.labels, split, options.test_fraction, str(path))
    if isinstance(whole.images, np.memmap):
        return Subset(whole, chosen)
    return ImageDataset(whole.images[chosen], whole.labels[chosen], num_classes, name)


def _read(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Find and check the arrays of each split there is: "train" and perhaps "test"."""
    form = "expected a .npz, or a folder with images.npy and labels.npy; see docs/data.md"
    if not path:
        raise Refused(f"config.data.path is empty, {form}.")
    root = fetched(path).expanduser()
    if not root.exists():
        raise Missing(f"config.data.path={path} does not exist, {form}.")
    if root.is_file():
        found = _by_split(read_npz(root), str(root))
    elif (root / "train.npz").is_file():
        files = {name: root / f"{name}.npz" for name in ("train", *_TESTS)}
        found = {
            name: images_and_labels(read_npz(file), str(file))
            for name, file in files.items()
            if file.is_file()
        }
    else:
        arrays = {file.stem: _open_npy(file) for file in sorted(root.glob("*.npy"))}
        if not arrays:
            raise Missing(f"{root} has neither train.npz nor .npy files, {form}.")
        found = _by_split(arrays, str(root))
    test = [found[name] for name in _TESTS if name in found]
    return {"train": found["train"]} | ({"test": test[0]} if test else {})


def _by_split(arrays: Arrays, place: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pair images with labels under any of the names that the module's docstring lists."""
    found = {}
    for split in ("train", *_TESTS):
        forms = [f"{{}}_{split}", f"{split}_{{}}"]
        images = [form.format(name) for form in forms for name in IMAGES]
        if any(name in arrays for name in images):
            labels = [form.format(name) for form in forms for name in LABELS]
            found[split] = images_and_labels(arrays, place, images, labels)
    return found if "train" in found else {"train": images_and_labels(arrays, place)}


def images_and_labels(
    arrays: Arrays, place: str, images: Iterable[str] = IMAGES, labels: Iterable[str] = LABELS
) -> tuple[np.ndarray, np.ndarray]:
    """Choose images and labels among arrays by their names.

    Args:
      arrays: name -> array.
      place: the file, for messages.
      images: names that the images may have.
      labels: names that the labels may have.

    Returns:
      ([n, h, w, c] images, [n] int32 labels), zeros where there are none.

    Raises:
      ValueError: if there are no images, or the labels are no class numbers.
    """
    chosen = [name for name in images if name in arrays]
    if not chosen:
        raise Refused(
            f"{place} has the arrays {sorted(arrays)}, expected images under one of the names "
            f"{sorted(images)}; rename one."
        )
    x = arrays[chosen[0]]
    x = x[..., None] if x.ndim == 3 else x
    y = next((arrays[name] for name in labels if name in arrays), None)
    if y is None:
        return x, np.zeros(len(x), np.int32)
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise Refused(
            f"{place} has labels of {y.dtype} {y.shape}, expected whole numbers {x.shape[:1]}, one "
            "class an image; convert them (one-hot labels by argmax)."
        )
    if y.size and (y.min() < 0 or y.max() >= 2**31 - 1):
        raise Refused(f"{place} has labels {y.min()}..{y.max()}, expected 0..; renumber them.")
    return x, y.astype(np.int32)


def _open_npy(file: Path) -> np.ndarray:
    """Map a .npy file into memory, reading nothing yet."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise refused(str(file), error) from error
