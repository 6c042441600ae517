"""The keys of `config.model` that the family has, and their rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dmd2_jax.config.rules import (
    AT_LEAST_ONE,
    AT_LEAST_TWO,
    CHANNELS,
    CLASSES,
    DTYPES,
    FRACTION,
    POSITIVE,
    REMAT,
    Rule,
    choice_faults,
    holds,
    number_faults,
)

__all__ = ["CHANNELS_PER_HEAD", "attending", "defaults", "faults", "recorded"]

CHANNELS_PER_HEAD = 64
"""Of the ADM U-Net's attention; a level with fewer has none."""


def defaults() -> ConfigDict:
    """Return the group: a small ADM U-Net for digits."""
    model = ConfigDict()
    model.family = "edm"
    model.network = "adm"  # adm | song
    model.resolution = 8  # of the data, which data.resize may make so
    model.image_channels = FieldReference(None, int)  # None: as the data have
    model.num_classes = FieldReference(None, int)  # 0: unconditional; None: as the data have
    model.model_channels = 32
    model.channel_mult = (1, 2)
    model.channel_mult_emb = 4
    model.num_blocks = 1
    model.attention_resolutions = (4,)  # sides of levels; of adm with 64 channels or more
    # Sides of the levels whose encoder outputs GAN heads read, one each; (): the bottleneck.
    model.feature_resolutions = ()
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
    AT_LEAST_ONE: ("resolution", "num_blocks"),
    CHANNELS: ("image_channels",),
    AT_LEAST_TWO: ("num_levels",),
    CLASSES: ("num_classes",),
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
    elif not wrong:
        yield from _attention_faults(model)
        yield from _feature_faults(model)


def attending(model: Mapping[str, Any]) -> tuple[int, ...]:
    """Return those of `attention_resolutions` at which the network attends.

    Args:
      model: every key of `defaults`, or those of a network.
    """
    channels = _channels(model)
    fewest = CHANNELS_PER_HEAD if model["network"] == "adm" else 1
    asked = tuple(model["attention_resolutions"])
    return tuple(side for side in asked if channels.get(side, 0) >= fewest)


def recorded(model: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a group as it is built, and in a sentence what that leaves away; "" if nothing.

    Older runs and published weights name levels that never attended, which is refused of new ones.

    Args:
      model: the group of an older run, or what a file of weights records.
    """
    try:
        asked, built = tuple(model["attention_resolutions"]), attending(model)
    except (KeyError, TypeError):  # what is wrong there is said where the network is built
        return dict(model), ""
    if built == asked:
        return dict(model), ""
    said = f"model.attention_resolutions is {asked}, of which the network attends at {built} alone"
    return {**model, "attention_resolutions": built}, said


def _channels(model: Mapping[str, Any]) -> dict[int, int]:
    """Return the side of each level and its channels."""
    multipliers = enumerate(model["channel_mult"])
    return {model["resolution"] >> i: model["model_channels"] * mult for i, mult in multipliers}


def _feature_faults(model: Mapping[str, Any]) -> Iterator[str]:
    asked, sides = tuple(model["feature_resolutions"]), list(_channels(model))
    if not set(asked) <= set(sides) or len(set(asked)) < len(asked):
        yield (
            f"model.feature_resolutions={asked}, expected each of some of {sides} once, the sides "
            f"of the network's levels, or () for the bottleneck; set it to {tuple(sides)}."
        )


def _attention_faults(model: Mapping[str, Any]) -> Iterator[str]:
    asked, channels, built = (
        tuple(model["attention_resolutions"]),
        _channels(model),
        attending(model),
    )
    if none := [side for side in asked if side not in channels]:
        yield (
            f"model.attention_resolutions={asked} has {none}, which no level of the network has, "
            f"expected some of {list(channels)} or (): it would be built without that attention; "
            f"set config.model.attention_resolutions, for example to {(list(channels)[-1],)}."
        )
    if few := {side: channels[side] for side in asked if side in channels and side not in built}:
        yield (
            f"model.attention_resolutions={asked} has {list(few)}, where there are "
            f"{list(few.values())} channels, expected at least {CHANNELS_PER_HEAD}, those of one "
            "head of network=adm: it would be built without that attention; raise "
            "config.model.model_channels or channel_mult, or leave the level away."
        )
