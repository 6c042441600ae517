"""What a source of training examples offers, and what it may leave to defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import DIGESTS, RESIZE
from dmd2_jax.config.sizes import Size, Sizes
from dmd2_jax.data.reading.classes import Listing
from dmd2_jax.data.reading.files import Files
from dmd2_jax.typing import Int

__all__ = [
    "Batch",
    "Examples",
    "MissingPackageError",
    "NoSplitError",
    "Options",
    "Source",
    "SourceDefaults",
    "completed",
]

Batch = dict[str, np.ndarray]
"""`image` uint8 [..., b, h, w, c] and `label` int32 [..., b]; of latents see data/latents.py."""


class NoSplitError(Refused):
    """Data without this split: they have no test images, and none are held out."""


class MissingPackageError(ImportError, Refused):
    """A source needs a package that is not installed: mended by the user, as a bad value is."""


class Examples(Protocol):
    """Anything that is read by number, in any order, from any thread."""

    def __len__(self) -> int: ...

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, 0 .. len - 1, in this order."""


class Source(Examples, Protocol):
    """Training examples: images of one size with class labels, or latents with embedded prompts.

    What `examples` returns is a function of the files and the numbers alone, so that a run is one
    of (config, seed, data). Every source has the first four members, `examples` and `len()`; the
    others have the defaults of `SourceDefaults`.
    """

    @property
    def name(self) -> str:
        """What messages and titles call it."""

    @property
    def resolution(self) -> Sizes:
        """Height and width, in pixels or in a latent's cells, as config.model.resolution says."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour; of latents as many as they have."""

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each occurs; 0: prompts in their place."""

    @property
    def null(self) -> Mapping[str, np.ndarray] | None:
        """The condition of no prompt, for guidance; None: the condition is a class."""

    @property
    def buckets(self) -> Mapping[Size, "Source"]:
        """The examples of each shape, where there are several; {}: all are of one."""

    @property
    def has_images(self) -> bool:
        """Whether there are images or latents to train on, not prompts alone."""

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The digests of the text encoders that embedded the prompts, if there are prompts."""

    @property
    def identity(self) -> str | None:
        """A digest that changes when any example does; None: unknown."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The name of each class in the order of the numbers; None: they have none."""

    @property
    def formerly(self) -> str:
        """How earlier releases numbered the classes, where that was otherwise; "": as now."""

    @property
    def listing(self) -> Listing | None:
        """What is listed, without reading an image; None: unknown."""

    @property
    def files(self) -> Files | None:
        """The files that the examples come from, with their sizes; None: unknown."""

    @property
    def corrupt(self) -> Mapping[int, str]:
        """Of each example found undecodable so far: its number -> its name and what is wrong."""

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Return every example's class without decoding its image, damaged: -1; None: unknown."""

    def describe(self, index: int) -> str:
        """Return the name of an example for messages, its file for instance."""

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"] | None:
        """Return height and width of images as the files have them; None: as `resolution` says."""


class SourceDefaults:
    """The members that a source of images with classes need not have; a base class of sources."""

    null: Mapping[str, np.ndarray] | None = None
    buckets: Mapping[Size, Source] = MappingProxyType({})
    has_images: bool = True
    text_encoders: tuple[str, ...] = ()
    identity: str | None = None
    class_names: tuple[str, ...] | None = None
    formerly: str = ""
    files: Files | None = None
    corrupt: Mapping[int, str] = MappingProxyType({})

    @property
    def listing(self) -> Listing | None:
        """Nothing is known before the examples are read."""
        return None

    def known_labels(self) -> Int[np.ndarray, " n"] | None:
        """Nothing is known of the classes before the examples are read."""
        return None

    def describe(self, index: int) -> str:
        """Return a name of an example for messages: its number."""
        return f"image {index}"

    def sizes(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"] | None:
        """Nothing is resized as it is read."""
        return None


@dataclass(frozen=True)
class Options:
    """How a source reads; see the keys of `config.data` with the same names.

    Attributes:
      spec: what follows the colon of `config.data.name`; empty: nothing.
      test_fraction: share of every class that is held out where the data have no test split; 0:
        none, and there is no test split.
      max_corrupt: how many images may be undecodable before reading stops.
      workers: threads that decode; 0: one for each processor.
      resize: "none": an image of another size than the resolution is refused; "crop": it is resized
        until its shorter side fits, and its middle is kept; "enlarge": smaller ones as well.
      digest: what tells the files of one run from other ones: "names"; "sizes" as well; or
        "contents", for which every file is read once when a run starts.

    Raises:
      ValueError: if a value is out of range.
    """

    spec: str = ""
    test_fraction: float = 0.1
    max_corrupt: int = 10
    workers: int = 0
    resize: str = "none"
    digest: str = "sizes"

    def __post_init__(self) -> None:
        if not 0 <= self.test_fraction < 1:
            raise Refused(
                f"config.data.test_fraction={self.test_fraction}, expected a number in [0, 1), the "
                "share of each class that is held out; 0.1 is usual, 0 is none."
            )
        for key in ("max_corrupt", "workers"):
            if getattr(self, key) < 0:
                raise Refused(
                    f"config.data.{key}={getattr(self, key)}, expected 0 or more; raise it."
                )
        if self.resize not in RESIZE:
            raise Refused(
                f"config.data.resize={self.resize!r}, expected one of {RESIZE}; choose one."
            )
        if self.digest not in DIGESTS:
            raise Refused(
                f"config.data.digest={self.digest!r}, expected one of {DIGESTS}; choose one."
            )


_NEEDED = ("name", "resolution", "channels", "num_classes", "examples", "__len__")
_OPTIONAL = tuple(name for name in vars(SourceDefaults) if not name.startswith("_"))


class _Completed:
    """A source of which the members that it lacks have their defaults."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # of a copy that is not made yet
            raise AttributeError(name)
        if name in _OPTIONAL and not hasattr(self._source, name):
            return getattr(_DEFAULTS, name)
        return getattr(self._source, name)


_DEFAULTS = SourceDefaults()


def completed(source: Any, made_by: str) -> Source:
    """Give an object with the needed members of a source the others as well.

    Args:
      source: what a module's `load` returned.
      made_by: the module, for the message.

    Returns:
      The object itself where it lacks nothing.

    Raises:
      Refused: if it lacks what has no default.
    """
    lacking = [name for name in _NEEDED if not hasattr(source, name)]
    if lacking:
        raise Refused(
            f"{made_by}: load returned {type(source).__name__} without {', '.join(lacking)}, "
            "expected a source; return an ImageDataset, or see docs/data.md."
        )
    if all(hasattr(source, name) for name in _OPTIONAL):
        return source
    return cast(Source, _Completed(source))
