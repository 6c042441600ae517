"""Prompts beside the data: `config.data.prompts`."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.data import Batch, Source
from dmd2_jax.typing import Int

__all__ = ["open_prompts"]

_TOKENS, _MASK = "prompt_embeds", "prompt_mask"


def open_prompts(config: ConfigDict, dataset: Source) -> tuple[Source, Source | None]:
    """Open the cache of prompts that a config names; without one, the data have their own.

    Where a mask says which tokens are a prompt's, the shorter prompts of two caches are filled up
    to the longer ones' length, which changes no image.

    Args:
      config: the whole config.
      dataset: the real examples.

    Returns:
      (the real examples; what a student's conditions are drawn from, None: it has classes).

    Raises:
      Refused: if it is no such cache, or another network's, or of prompts of another length
        without a mask.
    """
    null, path = dataset.null, config.data.prompts
    if null is None:
        if path:
            raise Refused(
                f"config.data.prompts={path} with data that have classes, expected a text-to-image "
                "model; leave it away."
            )
        return dataset, None
    if not path:
        return dataset, dataset
    chosen = config.data.copy_and_resolve_references()
    chosen.path = path
    try:
        prompts = data.load(chosen, "all", config.model.resolution)
    except (ValueError, FileNotFoundError) as error:
        raise Refused(f"config.data.prompts={path}: {error}") from error
    made_by, expected = prompts.text_encoders, dataset.text_encoders
    if made_by != expected:
        raise Refused(
            f"config.data.prompts={path} was made by the text encoders {made_by}, expected those "
            f"of config.data.path, {expected}; write it with the same pipeline and text encoders."
        )
    assert prompts.null is not None  # the same text encoders'
    ours, theirs = (it[_TOKENS].shape[-2] for it in (prompts.null, null))
    if ours == theirs:
        return dataset, prompts
    if not all(_MASK in it for it in (prompts.null, null)):
        raise Refused(
            f"config.data.prompts={path} has prompts of {ours} tokens, expected the "
            f"{theirs} of config.data.path; leave it away, or write both caches of prompts "
            "whose longest have as many."
        )
    most = max(ours, theirs)
    return _filled(dataset, most), _filled(prompts, most)


def _filled(source: Source, tokens: int) -> Source:
    return cast(Source, _Filled(source, tokens))


class _Filled:
    """A source whose prompts are filled up: no tokens, and 0 in their mask."""

    def __init__(self, source: Source, tokens: int) -> None:
        self._source, self._tokens = source, tokens

    def __getattr__(self, name: str) -> Any:
        if name == "_source":  # of a copy that is not made yet
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    @property
    def null(self) -> Mapping[str, np.ndarray]:
        """The condition of no prompt, filled up."""
        assert self._source.null is not None  # a source of prompts
        return self._fill(self._source.null)

    @property
    def buckets(self) -> Mapping[Size, Source]:
        """The examples of each shape, where there are several."""
        return {size: _filled(it, self._tokens) for size, it in self._source.buckets.items()}

    def examples(self, indices: Int[np.ndarray, " n"]) -> Batch:
        """Return the examples of these numbers, filled up."""
        return self._fill(self._source.examples(indices))

    def _fill(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        filled = dict(arrays)
        for name in (_TOKENS, _MASK):
            more = self._tokens - filled[name].shape[1]
            ends = [(0, 0), (0, more)] + [(0, 0)] * (filled[name].ndim - 2)
            filled[name] = np.pad(filled[name], ends)
        return filled
