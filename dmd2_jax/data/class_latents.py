"""Latents with classes: .npy files of an autoencoder's mean and std beside EDM's dataset.json.

A folder or zip as EDM2's and REPA's tools write it:

    dataset.json                          {"labels": [["00000/img-mean-std-00000000.npy", 3], ...]}
    00000/img-mean-std-00000000.npy       [2 c, h, w]: c channels of the mean, then c of the std
                                          of SD's autoencoder; or [c, h, w], the latents alone

An example is (mean + std eps) SCALE, eps standard normal and fixed by the number of the file.
`config.data.name=class_latents:SCALE` says another than 0.18215, that of SD's autoencoder. Without
a test split `config.data.test_fraction` of every class is held out by a fixed seed.
"""

import functools
import io
import math
from pathlib import Path

import numpy as np

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.config.sizes import Size, say_sizes, size_of
from dmd2_jax.data.reading.classes import Listing, listing_of_files
from dmd2_jax.data.reading.contract import Batch, Options, SourceDefaults
from dmd2_jax.data.reading.dataset import check_split, split_indices
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.edm_labels import LABELS, MAX_LABEL_BYTES, edm_classes
from dmd2_jax.data.reading.files import Files, files_of
from dmd2_jax.data.reading.folder import FileTree, Folder
from dmd2_jax.data.reading.zip_file import ZipFolder
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Float, Int

SPEC = "[<scale>]"

_SCALE = 0.18215
_CHANNELS = (4, 16)  # of a latent; with the std twice as many
_MAX_BYTES = 2**26  # of a file


def load(
    path: str, split: str = "train", resolution: Size = 32, options: Options | None = None
) -> "ClassLatents":
    """Open a folder or zip of latents with classes.

    Args:
      path: the folder or the .zip.
      split: "train", "test" or "all".
      resolution: height and width that every latent must have.
      options: spec, test_fraction; see `Options`.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if the layout, a label or a latent is refused.
    """
    options = options or Options()
    check_split(split, ("train", "test"), "class_latents")
    if not path:
        raise Refused("config.data.path is empty, expected a folder or zip of latents; set it.")
    root = fetched(path).expanduser()
    if not root.exists():
        raise Missing(
            f"config.data.path={path} does not exist, expected a folder or zip of latents; mind "
            "the working directory."
        )
    tree = Folder(root, _wanted) if root.is_dir() else ZipFolder(root, _wanted, MAX_LABEL_BYTES)
    files = [name for name in tree.names if name.endswith(".npy")]
    if not files or LABELS not in tree.names:
        raise Refused(
            f"{path} has {len(files)} .npy files and {'a' if LABELS in tree.names else 'no'} "
            f"{LABELS}, expected latents beside it, as EDM2's and REPA's tools write them; make "
            "them, or correct config.data.path."
        )
    labels = np.array(edm_classes(tree, "", files), np.int32)
    chosen = split_indices(labels, split, options.test_fraction, str(path))
    source = ClassLatents(tree, files, labels, chosen, _scale(options.spec), options.digest)
    if source.resolution != resolution:
        raise Refused(
            f"{source.name}: latents are {say_sizes(source.resolution)} wide, expected "
            f"config.model.resolution={say_sizes(resolution)}; set it to "
            f"{say_sizes(source.resolution)}."
        )
    return source


class ClassLatents(SourceDefaults):
    """Latents that are read when they are asked for; implements `Source`.

    Attributes:
      name, resolution, channels, num_classes: see `Source`; of a latent.
    """

    def __init__(
        self,
        tree: FileTree,
        files: list[str],
        labels: Int[np.ndarray, " n"],
        chosen: Int[np.ndarray, " m"],
        scale: float,
        digest: str = "names",
    ) -> None:
        """Look at the first file, whose shape the others must have.

        Args:
          tree: that has the files.
          files: their names.
          labels: their classes.
          chosen: which of them are the examples.
          scale: of the latents.
          digest: see `Options`.

        Raises:
          Refused: if that file holds no latents.
        """
        self._tree, self._files, self._labels, self._chosen = tree, files, labels, chosen
        self._scale, self._digest = scale, digest
        self._shape: tuple[int, ...] = ()
        self.name = f"class_latents {Path(tree.place).name}"
        self.num_classes = int(labels.max()) + 1
        self._shape = self._read(0).shape
        self.resolution, self.channels = size_of(*self._shape[:2]), self._shape[2]

    def __len__(self) -> int:
        return len(self._chosen)

    @functools.cached_property
    def listing(self) -> Listing:
        """The files and their classes."""
        pairs = [(self._files[i], int(self._labels[i])) for i in self._chosen]
        listing, files = listing_of_files(pairs, self.num_classes), self.files
        if files is None:
            return listing
        return listing._replace(sizes=files.by_size, contents=files.by_content)

    @functools.cached_property
    def files(self) -> Files | None:  # type: ignore[override]
        """The files and their sizes."""
        names = [self._files[i] for i in self._chosen]
        return files_of(
            names,
            self._digest,
            lambda i: self._tree.size(names[i]),
            lambda i: self._tree.read(names[i], _MAX_BYTES),
        )

    def known_labels(self) -> Int[np.ndarray, " n"]:
        """Return every example's class."""
        return self._labels[self._chosen]

    def describe(self, index: int) -> str:
        """Return the name of an example's file."""
        return f"{self._tree.place}/{self._files[self._chosen[index]]}"

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return latent [n, h, w, c] float32 and label [n] int32.

        Raises:
          Refused: if a file is damaged or of another shape than the first.
        """
        numbers = self._chosen[np.asarray(indices)]
        latents = np.empty((len(numbers), *self._shape), np.float32)
        for row, number in enumerate(numbers):
            latents[row] = self._read(int(number))
        return {"latent": latents, "label": self._labels[numbers]}

    def _read(self, number: int) -> Float[np.ndarray, "h w c"]:
        name = self._files[number]
        try:
            data = io.BytesIO(self._tree.read(name, _MAX_BYTES))
            array = np.load(data, allow_pickle=False)
        except (ValueError, EOFError, OSError, CorruptImageError) as error:
            raise Refused(
                f"{self._tree.place}/{name} cannot be read ({error}), expected latents; make it "
                "again."
            ) from error
        sizes = (*_CHANNELS, *(2 * c for c in _CHANNELS))
        sound = array.ndim == 3 and array.shape[0] in sizes
        if not sound or not np.issubdtype(array.dtype, np.floating):
            raise Refused(
                f"{self._tree.place}/{name} has {array.dtype} of shape {array.shape}, expected "
                f"floats [channels, height, width] of {', '.join(map(str, sizes))} channels; "
                "make it again."
            )
        latent = array.astype(np.float32)
        if len(latent) not in _CHANNELS:
            mean, std = np.split(latent, 2)
            latent = mean + std * np.random.default_rng(number).standard_normal(mean.shape, "f4")
        latent = latent.transpose(1, 2, 0) * np.float32(self._scale)
        if self._shape and latent.shape != self._shape:
            raise Refused(
                f"{self._tree.place}/{name} has latents of shape {latent.shape}, expected "
                f"{self._shape} as the first file; make it again."
            )
        if not np.isfinite(latent).all():
            raise Refused(
                f"{self._tree.place}/{name} is not finite, expected numbers; make it again."
            )
        return latent


def _scale(spec: str) -> float:
    try:
        scale = float(spec) if spec else _SCALE
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise Refused(
            f"config.data.name='class_latents:{spec}', expected a scale above 0 after the colon; "
            f"leave it away for {_SCALE}."
        )
    return scale


def _wanted(name: str) -> bool:
    return name.endswith(".npy") or name == LABELS
