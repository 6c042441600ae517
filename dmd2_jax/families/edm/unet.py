"""What EDM's two U-Nets have in common: how they are called."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.families.edm.unet_block import UNetBlock
from dmd2_jax.typing import Array, Float

"""What a backward pass computes again instead of keeping it (rematerialisation).

"block": what is inside of each residual block; the blocks' inputs are kept. "full": the blocks'
inputs too, so that between the passes nothing is kept but the network's own inputs; while one
network's gradient is taken, its blocks' inputs are there, as with "block".
"""


class UNet(nn.Module):
    """A U-Net that embeds the noise level, encodes with skips and decodes.

    A subclass has the layers and `_embed`, `_encode` (the skips, the bottleneck last) and `_decode`
    (from the skips to the raw output).

    Attributes:
      remat: one of `REMAT`.
      feature_resolutions: sides of the levels whose last encoder blocks `encoder_features` returns.
    """

    remat: str = dataclasses.field(default="none", kw_only=True)
    feature_resolutions: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Return the raw network output F, float32.

        Args:
          x: [b, h, w, c], the scaled noisy image.
          noise_labels: [b], ln(sigma) / 4.
          class_labels: [b, label_dim] one-hot, zeros or None: no class.
        """
        return self.call_with_bottleneck(x, noise_labels, class_labels)[0]

    def bottleneck(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> Float[Array, "b h2 w2 d"]:
        """Return the output of the last encoder block, float32; no decoder is traced."""
        return self._whole(UNet._bottleneck)(self, x, noise_labels, class_labels)

    def call_with_bottleneck(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 d"]]:
        """Return (F, bottleneck) from one pass, both float32."""
        return self._whole(UNet._call)(self, x, noise_labels, class_labels)

    def encoder_features(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b h2 w2 d"], ...]:
        """Return the encoder's output at each of `feature_resolutions`; no decoder is traced."""
        return self._whole(UNet._features)(self, x, noise_labels, class_labels)

    def call_with_features(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b h w c"], tuple[Float[Array, "b h2 w2 d"], ...]]:
        """Return (F, `encoder_features`) from one pass."""
        return self._whole(UNet._call_with_features)(self, x, noise_labels, class_labels)

    def _whole(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return nn.remat(call) if self.remat == "full" else call

    def _block_class(self) -> type[UNetBlock]:
        return UNetBlock if self.remat == "none" else nn.remat(UNetBlock)

    def _bottleneck(self, x: Array, noise_labels: Array, class_labels: Array | None) -> Array:
        embedding = self._embed(noise_labels, class_labels)
        return self._encode(x, embedding)[-1].astype(jnp.float32)

    def _call(
        self, x: Array, noise_labels: Array, class_labels: Array | None
    ) -> tuple[Array, Array]:
        embedding = self._embed(noise_labels, class_labels)
        skips = self._encode(x, embedding)
        output = self._decode(skips, embedding)
        return output.astype(jnp.float32), skips[-1].astype(jnp.float32)

    def _features(
        self, x: Array, noise_labels: Array, class_labels: Array | None
    ) -> tuple[Array, ...]:
        return self._of_levels(self._encode(x, self._embed(noise_labels, class_labels)))

    def _call_with_features(
        self, x: Array, noise_labels: Array, class_labels: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        embedding = self._embed(noise_labels, class_labels)
        skips = self._encode(x, embedding)
        return self._decode(skips, embedding).astype(jnp.float32), self._of_levels(skips)

    def _of_levels(self, skips: list[Array]) -> tuple[Array, ...]:
        """Return the last of the skips of each side; the settings say that there is one."""
        last = {skip.shape[1]: skip for skip in skips}
        return tuple(last[side].astype(jnp.float32) for side in self.feature_resolutions)

    def _embed(
        self, noise_labels: Float[Array, " b"], class_labels: Float[Array, "b n"] | None
    ) -> Float[Array, "b d"]:
        raise NotImplementedError  # the subclass knows the layers

    def _encode(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]) -> list[Array]:
        raise NotImplementedError  # the subclass knows the layers

    def _decode(self, skips: list[Array], embedding: Float[Array, "b d"]) -> Array:
        raise NotImplementedError  # the subclass knows the layers
