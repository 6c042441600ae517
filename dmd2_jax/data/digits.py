"""The embedded default: 1,797 real handwritten digits of 8 x 8 pixels.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), the copy
inside scikit-learn (`sklearn.datasets.load_digits`): no download, no path.
"""

import importlib.util
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, say_sizes
from dmd2_jax.data.reading.contract import Options
from dmd2_jax.data.reading.dataset import ImageDataset, held_out, select_split

RESOLUTION = 8
NUM_CLASSES = 10
MAX_GREY = 16  # the files hold counts of 0..16 dark pixels in a 4 x 4 block
TEST_FRACTION = 0.2


def load(
    path: str = "",
    split: str = "train",
    resolution: Size = RESOLUTION,
    options: Options | None = None,
) -> ImageDataset:
    """Load digits, split 80/20 within each class by a fixed seed (1,438 train, 359 test).

    Args:
      path: must be empty; the data come with scikit-learn.
      split: "train", "test" or "all" (train, then test).
      resolution: 8, the only size there is; others are for the caller to make.
      options: resize counts; the split is always the same.

    Returns:
      [n, 8, 8, 1] images, grey value v of 0..16 stored as round(255 v / 16).

    Raises:
      ValueError: if the split or the resolution does not exist, or a path is given.
    """
    if path:
        raise Refused(
            f"config.data.path={path} with config.data.name=digits, which reads no files, expected "
            "none; name the source that is to read it, such as config.data.name=image_folder."
        )
    if resolution != RESOLUTION and (options or Options()).resize == "none":
        raise Refused(
            f"config.model.resolution={say_sizes(resolution)} for digits, expected {RESOLUTION}; "
            f"set it to {RESOLUTION}, let them be resized by `config.data.resize=enlarge`, or "
            "choose another config.data.name."
        )
    pixels, labels = np.split(_table(), [RESOLUTION**2], axis=1)
    images = np.round(pixels * (255.0 / MAX_GREY)).astype(np.uint8)
    images, labels = images.reshape(-1, RESOLUTION, RESOLUTION, 1), labels[:, 0].astype(np.int32)
    test = held_out(labels, TEST_FRACTION)
    splits = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    return ImageDataset(*select_split(splits, split, "digits"), NUM_CLASSES, "digits")


def _table() -> np.ndarray:
    """Return [n, 65], pixels and digit, as load_digits does, whose import takes a second."""
    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found is not None else None
    for place in places or ():
        file = Path(place, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a release that keeps it elsewhere

    raw = load_digits()
    return np.column_stack([raw.data, raw.target])
