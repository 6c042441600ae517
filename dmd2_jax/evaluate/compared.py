"""What was measured, to be looked at: a few images of each network below real ones."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Sizes, sides
from dmd2_jax.data import Source
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.evaluate.spaces import LATENTS
from dmd2_jax.pictures.grids import headed_rows
from dmd2_jax.run.folder import COMPARED
from dmd2_jax.sampling.conditions import Classes
from dmd2_jax.sampling.images import Images, SampledImages
from dmd2_jax.typing import Int, Shaped

__all__ = ["FirstImages", "draw_compared"]

_LOG = logging.getLogger(__name__)

_ROWS = 2  # of each set
_SMALL, _MANY, _FEW = 128, 10, 4  # up to this side so many stand in a row, beyond it so few
_LOOKED_AT, _AT_A_TIME = 4096, 256  # real images, in the search for some of the right classes


class FirstImages:
    """The first images of each set: those of the same place have noise and class alike."""

    def __init__(self) -> None:
        """Begin with none."""
        self.sets: dict[str, np.ndarray] = {}

    def add(self, images: Images, batch: Shaped[np.ndarray, "b h w c"]) -> None:
        """Take those of a batch that are among the first of their set."""
        kept = self.sets.get(images.key)
        missing = _ROWS * _columns(images.resolution) - (0 if kept is None else len(kept))
        if missing > 0:
            first = np.asarray(to_uint8(batch[:missing]))
            self.sets[images.key] = first if kept is None else np.concatenate([kept, first])


def draw_compared(
    first: FirstImages,
    measured: Sequence[Images],
    figures: Mapping[str, Any],
    config: ConfigDict,
    workdir: Path,
) -> None:
    """Write compared.png into a run folder: real images, and those of each network below them.

    Args:
      first: of each set.
      measured: the sets; those of checkpoints are left out.
      figures: of metrics.json.
      config: the run's; its data are the real images, where they are images.
      workdir: the run folder.
    """
    sets = [images for images in measured if images.step is None and images.key in first.sets]
    if not sets:
        return
    columns = _columns(sets[0].resolution)
    groups = [_rows(_heading(it, figures), first.sets[it.key], columns) for it in sets]
    if (real := _real(sets[0], len(first.sets[sets[0].key]), config)) is not None:
        groups.insert(0, _rows("real", real, columns))
    headed_rows(groups, workdir / COMPARED)


def _columns(resolution: Sizes) -> int:
    return _MANY if max(sides(resolution)) <= _SMALL else _FEW


def _rows(heading: str, images: np.ndarray, columns: int) -> list[tuple[str, np.ndarray]]:
    number = math.ceil(len(images) / columns)
    return [
        ("" if row else heading, images[row * columns : (row + 1) * columns])
        for row in range(number)
    ]


def _heading(images: Images, figures: Mapping[str, Any]) -> str:
    calls, fid = figures.get(f"{images.key}_nfe"), figures.get(f"{images.key}_fid")
    words = [images.key.replace("_", " ")]
    words += [f"{calls} call{'' if calls == 1 else 's'}"] if calls is not None else []
    return ", ".join(words + ([f"FID {fid:.2f}"] if fid is not None else []))


def _real(images: Images, number: int, config: ConfigDict) -> Shaped[np.ndarray, "..."] | None:
    """Return so many real images of the same classes; None where the recipe has none of them."""
    conditions = images.conditions if isinstance(images, SampledImages) else None
    if config.data.name == LATENTS or not isinstance(conditions, Classes):
        return None
    try:
        source = data.load(config.data, "all", config.model.resolution)
        order = np.random.RandomState(config.seed).permutation(len(source))[:_LOOKED_AT]
        if not conditions.are_classes:
            return source.examples(order[:number])["image"]
        return _of_classes(source, order, conditions.labels(np.arange(number)))
    except (OSError, Refused) as error:
        _LOG.warning("%s: no real images beside the others (%s).", COMPARED, error)
        return None


def _of_classes(
    source: Source, order: Int[np.ndarray, " m"], labels: Int[np.ndarray, " n"]
) -> Shaped[np.ndarray, "..."]:
    """Return the first image of each of these classes; of one that is not found, of another."""
    wanted, spare = list(range(len(labels))), []
    found: dict[int, np.ndarray] = {}
    for begin in range(0, len(order), _AT_A_TIME):
        batch = source.examples(order[begin : begin + _AT_A_TIME])
        for image, label in zip(batch["image"], batch["label"], strict=True):
            place = next((it for it in wanted if labels[it] == label), None)
            if place is None:
                spare.append(image)
            else:
                found[place] = image
                wanted.remove(place)
        if not wanted:
            break
        spare = spare[: len(labels)]
    found |= dict(zip(wanted, spare, strict=False))
    return np.stack([found[place] for place in sorted(found)])
