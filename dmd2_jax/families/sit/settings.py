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
    POSITIVE,
    REMAT,
    SIZES,
    choice_faults,
    number_faults,
    value_faults,
)
from dmd2_jax.config.sizes import say_sizes, sides, sizes_of

__all__ = ["defaults", "faults"]


def defaults() -> ConfigDict:
    """Return the group: a small SiT for digits."""
    model = ConfigDict()
    model.family = "sit"
    # A folder of diffusers' DiTPipeline, or of its transformer: its network and noise levels, in
    # place of what is from `patch` to `heads` and from `prediction` to `num_levels`; "": none.
    model.pipeline = ""
    # Of the data, pixels or latents: a side, or HEIGHTxWIDTH.
    model.resolution = FieldReference(8, field_type=object)
    model.image_channels = FieldReference(None, int)  # None: as the data have
    model.num_classes = FieldReference(None, int)  # 0: unconditional; None: as the data have
    model.patch = 2  # side of the patches that are tokens
    model.width = 64  # size of a token; 1152 in XL
    model.depth = 4  # blocks; 28 in XL
    model.heads = 4  # 16 in XL
    model.vae = ""  # folder of the autoencoder that decodes latents; "": none, as of pixels
    model.prediction = "flow"  # flow (SiT) | eps (DiT)
    model.learned_variance = False  # twice the channels, of which the second half is not used (DiT)
    model.data_time = 0  # what the network is told at data: 0, or 1 as the weights of SiT want
    model.time_scale = 1000.0  # of a flow's time for the network; 1 for the weights of SiT
    model.shift = 1.0  # of the flow's levels: above 1 more of them are noisy
    model.num_levels = 1000
    model.dtype = "float32"  # compute type: float32 | bfloat16
    model.remat = "none"  # none | block | full: what the backward pass computes again
    model.scan_layers = False  # loop over equal blocks: a small program, copies of the weights
    # Blocks, from 0, whose outputs the GAN head reads; (): the middle and three quarters.
    model.feature_blocks = ()
    return model


_CHOICES = {"prediction": ("flow", "eps"), "dtype": DTYPES, "remat": REMAT}
_NUMBERS = {
    AT_LEAST_ONE: ("patch", "width", "depth", "heads"),
    AT_LEAST_TWO: ("num_levels",),
    CHANNELS: ("image_channels",),
    CLASSES: ("num_classes",),
    POSITIVE: ("time_scale", "shift"),
}


_OF_PIPELINE = (
    *("patch", "width", "depth", "heads", "prediction", "learned_variance"),
    *("data_time", "time_scale", "shift", "num_levels"),
)


def faults(model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the values of the group.

    Args:
      model: every key of `defaults`.
    """
    usual = defaults()
    changed = [key for key in _OF_PIPELINE if model[key] != usual[key]]
    if model["pipeline"] and changed:
        yield (
            f"model.{changed[0]}={model[changed[0]]!r} beside model.pipeline={model['pipeline']}, "
            f"whose network has its own, expected {usual[changed[0]]!r}, which nothing reads; "
            f"leave it away, or set config.model.pipeline=''."
        )
        return
    wrong = [
        *choice_faults(model, _CHOICES, "model."),
        *value_faults(model, {SIZES: ("resolution",)}, "model."),
        *number_faults(model, _NUMBERS, "model."),
    ]
    yield from wrong
    if model["data_time"] not in (0, 1):
        yield (
            f"model.data_time={model['data_time']!r}, expected 0 or 1: what the network is told at "
            "data; set config.model.data_time."
        )
    if wrong:
        return
    size = model["resolution"]
    if any(side % model["patch"] for one in sizes_of(size) for side in sides(one)):
        yield (
            f"model.resolution={say_sizes(size)}, expected a multiple of model.patch="
            f"{model['patch']}; set config.model.patch, or resize the data."
        )
    if model["width"] % (4 * model["heads"]):
        yield (
            f"model.width={model['width']}, expected a multiple of 4 x model.heads="
            f"{4 * model['heads']}; set config.model.width."
        )
