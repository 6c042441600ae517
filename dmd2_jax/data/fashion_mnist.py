"""Fashion-MNIST from its four IDX files: 60,000 + 10,000 grey images of 28 x 28 pixels.

The files, gzipped or plain, come from the Debian package dataset-fashion-mnist
(/usr/share/datasets/fashion-mnist) or from the download folder of TFDS.

Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv 1708.07747.
"""

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, say_sizes
from dmd2_jax.data.idx import Pair, read_pair
from dmd2_jax.data.reading.contract import Options
from dmd2_jax.data.reading.dataset import ImageDataset, check_split, pad_to, select_split
from dmd2_jax.runtime.fetched import fetched

RESOLUTIONS = (28, 32)  # as stored, and padded to a power of two for U-Nets
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
NUM_CLASSES = len(CLASSES)
_FILE_SPLITS = {"train": "train", "test": "t10k"}  # our split -> prefix of the file names


def load(
    path: str, split: str = "train", resolution: Size = 28, options: Options | None = None
) -> ImageDataset:
    """Load Fashion-MNIST from the folder `path`.

    Args:
      path: folder of {train,t10k}-{images-idx3,labels-idx1}-ubyte, each with or without .gz.
      split: "train", "test" or "all" (train, then test).
      resolution: 28, or 32 for two black lines on every side.
      options: resize counts; the split is the published one.

    Returns:
      [n, resolution, resolution, 1] images.

    Raises:
      FileNotFoundError: if files are missing; lists them.
      ValueError: if a file is truncated or is not what its name says, or the split or the
        resolution does not exist.
    """
    resize = (options or Options()).resize
    if resolution not in RESOLUTIONS and resize == "none":
        raise Refused(
            f"config.model.resolution={say_sizes(resolution)} for fashion_mnist, expected one of "
            f"{RESOLUTIONS}; choose 32 for U-Nets that halve the image several times."
        )
    check_split(split, _FILE_SPLITS, "fashion_mnist")
    wanted = list(_FILE_SPLITS) if split == "all" else [split]
    splits = {
        name: read_pair(*pair, item_shape=(RESOLUTIONS[0],) * 2, num_classes=NUM_CLASSES)
        for name, pair in _find_files(path, wanted).items()
    }
    images, labels = select_split(splits, split, "fashion_mnist")
    dataset = ImageDataset(images, labels, NUM_CLASSES, "fashion_mnist", CLASSES)
    # What is neither is made of the images themselves, not of those with a border.
    return dataset if resolution not in RESOLUTIONS else pad_to(dataset, resolution)


def _find_files(path: str, splits: list[str]) -> dict[str, Pair]:
    """Find the image and the label file of each split, or say which are missing."""
    remedy = (
        "install the Debian package dataset-fashion-mnist and set "
        "config.data.path=/usr/share/datasets/fashion-mnist, or point it at a folder of the files."
    )
    if not path:
        raise Refused(f"config.data.path is empty, expected a folder of IDX files; {remedy}")
    folder = fetched(path).expanduser()
    found: dict[str, Pair] = {}
    missing = []
    for split in splits:
        pair = []
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{_FILE_SPLITS[split]}-{kind}-ubyte"
            existing = [f for f in (folder / name, folder / f"{name}.gz") if f.is_file()]
            pair += existing[:1]
            missing += [] if existing else [f"{name}[.gz]"]
        if len(pair) == 2:
            found[split] = (pair[0], pair[1])
    if missing:
        raise Missing(f"{folder} lacks {', '.join(missing)}; {remedy}")
    return found
