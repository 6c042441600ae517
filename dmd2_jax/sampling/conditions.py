"""What sampled images are of: classes by turns, or prompts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np

from dmd2_jax.text2image.pipeline import TextToImage
from dmd2_jax.text2image.text_encoder import refuse_cut
from dmd2_jax.typing import Int, PyTree

__all__ = ["Classes", "Conditions", "Prompts"]


class Conditions(Protocol):
    """What sampled images are of, by their numbers."""

    @property
    def are_classes(self) -> bool:
        """Whether the labels are classes, which a classifier can look for."""

    def labels(self, numbers: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the class or the number of the prompt of each image."""

    def inputs(self, numbers: Int[np.ndarray, " b"]) -> PyTree:
        """Return what `Family.cond` takes for each image."""

    def describe(self, number: int) -> str:
        """Return what stands behind the name of an image in messages, or nothing."""


class Classes(NamedTuple):
    """Classes by turns: every one alike often; see `Conditions`.

    Attributes:
      num_classes: how many classes the network knows; 0: none.
      chosen: class numbers to cycle through; None: all.
    """

    num_classes: int
    chosen: tuple[int, ...] | None = None

    @property
    def are_classes(self) -> bool:
        """Whether there are any."""
        return bool(self.num_classes)

    def labels(self, numbers: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the class of each image."""
        chosen = (
            np.arange(max(self.num_classes, 1)) if self.chosen is None else np.array(self.chosen)
        )
        return chosen[numbers % len(chosen)].astype(np.int32)

    def inputs(self, numbers: Int[np.ndarray, " b"]) -> PyTree:
        """Return the class of each image."""
        return self.labels(numbers)

    def describe(self, number: int) -> str:
        """Return nothing: a class is no name."""
        return ""


class Prompts:
    """Prompts, encoded as they are needed; see `Conditions`.

    The label of an image is its prompt's number, so that diversity is that within a prompt.
    """

    def __init__(
        self,
        pipeline: TextToImage,
        prompts: Sequence[str],
        *,
        each: int = 1,
        negative: str | None = None,
    ) -> None:
        """Take the prompts; nothing is encoded yet.

        Args:
          pipeline: whose text encoders are used.
          prompts: p texts; image i is of prompt i // each modulo p.
          each: images of a prompt that follow each other.
          negative: see `TextToImage.condition`.
        """
        self._pipeline, self._prompts = pipeline, prompts
        self._each, self._negative = each, negative

    def refuse_cut(self, describe: Callable[[int], str]) -> None:
        """Refuse prompts that no text encoder reads whole; reads the text encoders.

        Args:
          describe: names a prompt by its number, from 0.

        Raises:
          Refused: naming the first ones.
        """
        refuse_cut(self._pipeline.encoders, self._prompts, describe)

    @property
    def are_classes(self) -> bool:
        """False: prompts are no classes."""
        return False

    def labels(self, numbers: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
        """Return the number of the prompt of each image."""
        return (np.asarray(numbers) // self._each % len(self._prompts)).astype(np.int32)

    def inputs(self, numbers: Int[np.ndarray, " b"]) -> PyTree:
        """Encode the prompts of some images."""
        texts = [self._prompts[i] for i in self.labels(numbers)]
        encoded = self._pipeline.condition(texts, self._negative)
        return {name: jnp.asarray(array) for name, array in encoded.items()}

    def texts(self, count: int) -> list[str]:
        """Return the prompt of each of the first images."""
        return [self._prompts[i] for i in self.labels(np.arange(count))]

    def describe(self, number: int) -> str:
        """Return the prompt's first letters."""
        return f" ({self._prompts[self.labels(np.array([number]))[0]]:.60})"
