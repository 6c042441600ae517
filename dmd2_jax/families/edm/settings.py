"""The keys of `config.model` that the family has, and their rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.rules import (
    AT_LEAST_ONE,
    AT_LEAST_TWO,
    DTYPES,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    REMAT,
    Rule,
    choice_faults,
    holds,
    number_faults,
)

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: a small ADM U-Net for digits."""
    model = ConfigDict()
    model.family = "edm"
    model.network = "adm"  # adm | song
    model.resolution = 8  # of the data: they are padded or refused, never resized silently
    model.image_channels = 1
    model.num_classes = 10  # 0: unconditional
    model.model_channels = 32
    model.channel_mult = (1, 2)
    model.channel_mult_emb = 4
    model.num_blocks = 1
    model.attention_resolutions = (4,)
    model.augment_dim = 0  # 9 in EDM's CIFAR-10 weights; the labels are always zero here
    model.dropout = 0.0  # of the teacher's training alone
    model.dtype = "float32"  # compute type: float32 | bfloat16
    model.remat = "none"  # none | block | full: what the backward pass computes again
    model.embedding_type = "positional"  # song only: positional (DDPM++) | fourier (NCSN++)
    model.encoder_type = "standard"  # song only: standard (DDPM++) | residual (NCSN++)
    model.resample_filter = (1, 1)  # song only: (1, 1) DDPM++ | (1, 3, 3, 1) NCSN++
    model.channel_mult_noise = 1  # song only: 1 DDPM++ | 2 NCSN++
    model.sigma_data = 0.5  # standard deviation of the data
    model.sigma_min = 0.002  # the schedule: num_levels noise levels, rho-spaced in between
    model.sigma_max = 80.0
    model.rho = 7.0
    model.num_levels = 1000
    return model


_CHOICES = {
    "network": ("adm", "song"),
    "dtype": DTYPES,
    "remat": REMAT,
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
}
_NUMBERS = {
    Rule(lambda v: v >= 4, "at least 4"): ("model_channels",),
    AT_LEAST_ONE: ("resolution", "image_channels", "num_blocks"),
    AT_LEAST_TWO: ("num_levels",),
    NOT_NEGATIVE: ("num_classes",),
    POSITIVE: ("sigma_data", "sigma_min", "rho"),
    FRACTION: ("dropout",),
}


def faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the group.

    Args:
      model: every key of `defaults`.
    """
    wrong = [
        *choice_faults(model, _CHOICES, "model."),
        *number_faults(model, _NUMBERS, "model."),
    ]
    yield from wrong
    low, high = model["sigma_min"], model["sigma_max"]
    if not holds(lambda v: low < v, high):
        yield (
            f"model.sigma_min={low!r} and sigma_max={high!r}, expected sigma_min < sigma_max; "
            "the paper's values are 0.002 and 80."
        )
    levels, side = len(model["channel_mult"]), model["resolution"]
    if not levels:
        yield (
            "model.channel_mult=(), expected one multiplier a level, for example (1, 2); set "
            "config.model.channel_mult."
        )
    elif not wrong and side % 2 ** (levels - 1):
        yield (
            f"model.resolution={side}, expected it to be divisible by {2 ** (levels - 1)} for "
            f"{levels} levels; pad the images or use fewer levels."
        )
