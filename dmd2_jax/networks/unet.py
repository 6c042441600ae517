"""What EDM's two U-Nets have in common: how they are called."""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.typing import Array, Float


class UNet(nn.Module):
    """A U-Net that embeds the noise level, encodes with skips and decodes.

    A subclass has the layers and `_embed`, `_encode` (the skips, the bottleneck last) and `_decode`
    (from the skips to the raw output).
    """

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
        embedding = self._embed(noise_labels, class_labels)
        return self._encode(x, embedding)[-1].astype(jnp.float32)

    def call_with_bottleneck(
        self,
        x: Float[Array, "b h w c"],
        noise_labels: Float[Array, " b"],
        class_labels: Float[Array, "b n"] | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h2 w2 d"]]:
        """Return (F, bottleneck) from one pass, both float32."""
        embedding = self._embed(noise_labels, class_labels)
        skips = self._encode(x, embedding)
        output = self._decode(skips, embedding)
        return output.astype(jnp.float32), skips[-1].astype(jnp.float32)

    def _embed(
        self, noise_labels: Float[Array, " b"], class_labels: Float[Array, "b n"] | None
    ) -> Float[Array, "b d"]:
        raise NotImplementedError  # the subclass knows the layers

    def _encode(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b d"]) -> list[Array]:
        raise NotImplementedError  # the subclass knows the layers

    def _decode(self, skips: list[Array], embedding: Float[Array, "b d"]) -> Array:
        raise NotImplementedError  # the subclass knows the layers
