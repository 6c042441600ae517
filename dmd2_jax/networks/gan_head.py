"""Heads that judge a Denoiser's features: real or generated."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Discriminator
from dmd2_jax.networks.layers import Conv, GroupNorm, Linear
from dmd2_jax.typing import Array, Float, Key, Params

_MAX_GROUPS = 32
_MIN_PER_GROUP = 3
_LAST_SIZE = 4


def head_groups(hidden: int) -> int:
    """Return the number of group-norm groups of a head with `hidden` channels.

    32 as in the original wherever each group then holds at least 3 channels; else the largest
    smaller divisor of `hidden` for which it does. The last norm sees one pixel: with one channel
    a group its output is constant, with two only a sign.

    Args:
      hidden: channels.

    Returns:
      A divisor of `hidden`, 1 to 32.
    """
    candidates = range(min(_MAX_GROUPS, hidden // _MIN_PER_GROUP), 1, -1)
    return next((groups for groups in candidates if hidden % groups == 0), 1)


class GanHead(nn.Module):
    """Convolve a feature map down to one logit.

    [conv 4x4 stride 2 -> GroupNorm -> SiLU] until a side has at most 4 pixels, then a
    convolution as large as what remains -> GroupNorm -> SiLU -> conv 1x1. For the 8x8 bottleneck
    of ImageNet-64 and the 32x32 one of SDXL that is the original's head, layer by layer; its
    layers are named by their place in that sequence ("0", "1", "3", ...).

    Attributes:
      hidden: channels of every layer.
      num_stages: stride-2 convolutions; None: as many as the feature map needs.
      groups: groups of the norms; None: `head_groups(hidden)`.
      last: side of the convolution over what remains; None: as large as that is. A smaller one
        gives a logit at each place, and their mean counts.

    Source: Yin et al. 2024 (2405.14867), section 4.3 and appendix; the stages that adapt to the
      size are ours.
    """

    hidden: int = 768
    num_stages: int | None = None
    groups: int | None = None
    last: int | None = None

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """Return one logit a sample, float32; large means real."""
        x = features.astype(jnp.float32)
        groups = head_groups(self.hidden) if self.groups is None else self.groups
        place = 0

        def stage(x: Array, size: int | tuple[int, int], stride: int, padding: int) -> Array:
            nonlocal place
            x = Conv(self.hidden, size, stride, padding, name=str(place))(x)
            x = GroupNorm(groups, name=str(place + 1))(x)
            place += 3  # the activation has a place of its own
            return nn.silu(x)

        for _ in range(_num_stages(x.shape) if self.num_stages is None else self.num_stages):
            x = stage(x, 4, 2, 1)
        x = stage(x, self.last or (x.shape[1], x.shape[2]), 1, 0)
        logits = Conv(1, 1, name=str(place))(x)[..., 0]
        return logits[:, 0, 0] if self.last is None else logits.mean((1, 2))


def head_of_any_shape(smallest: int, hidden: int) -> GanHead:
    """Make a head whose parameters are the same for feature maps of any height and width.

    Args:
      smallest: side of all the maps that it is for.
      hidden: channels.
    """
    stages = _num_stages((1, smallest, smallest, 1))
    return GanHead(hidden, num_stages=stages, last=smallest >> stages)


class VectorHead(nn.Module):
    """Judge a feature vector: linear -> SiLU -> linear -> SiLU -> linear to one logit.

    Attributes:
      hidden: width of the two hidden layers.
    """

    hidden: int = 128

    @nn.compact
    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, " b"]:
        """Return one logit a sample, float32; large means real."""
        x = nn.silu(Linear(self.hidden, name="0")(features.astype(jnp.float32)))
        x = nn.silu(Linear(self.hidden, name="2")(x))
        return Linear(1, name="4")(x)[:, 0]


def discriminator(module: nn.Module) -> Discriminator:
    """Make a Discriminator with one head of `module`'s kind for each feature array.

    Its parameters are {"head_0": ..., "head_1": ...}; the logit is the mean over the heads.

    Args:
      module: a Linen module, feature array -> logits [b].

    Returns:
      The Discriminator.
    """

    def init(key: Key, features: Sequence[Array | jax.ShapeDtypeStruct]) -> Params:
        keys = jax.random.split(key, len(features))

        def init_head(key: Key, feature: Array | jax.ShapeDtypeStruct) -> Params:
            shape = jax.ShapeDtypeStruct(feature.shape, feature.dtype)
            return jax.jit(lambda key: module.lazy_init(key, shape)["params"])(key)

        return {f"head_{i}": init_head(keys[i], feature) for i, feature in enumerate(features)}

    def logits(params: Params, features: tuple[Array, ...]) -> Float[Array, " b"]:
        if len(params) != len(features):
            raise Refused(
                f"got {len(features)} feature arrays for a discriminator of {len(params)} heads, "
                "expected one each; initialise it with the features of this Denoiser."
            )
        each = [
            module.apply({"params": params[f"head_{i}"]}, feature)
            for i, feature in enumerate(features)
        ]
        return jnp.mean(jnp.stack(each).astype(jnp.float32), axis=0)

    return Discriminator(init=init, logits=logits)


def _num_stages(shape: tuple[int, ...]) -> int:
    """Count the halvings of [b, h, w, c] until its smaller side is at most 4."""
    side, stages = min(shape[1:3]), 0
    while side > _LAST_SIZE:
        side, stages = side // 2, stages + 1
    return stages
