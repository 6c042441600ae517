"""A small convolutional classifier whose penultimate layer serves as a feature space.

Plays the part of the Inception network for data sets that Inception has never seen, such as
8 x 8 digits.
"""

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.typing import Array, Float


class ConvClassifier(nn.Module):
    """Convolutions, pooled by halves down to 4 x 4, then one hidden layer.

    For images of 8 to 64 pixels with any number of channels. Uses no batch statistics, so an
    image's features do not depend on its batch.

    Attributes:
      num_classes: number of logits.
      num_features: d, width of the penultimate layer. Small, so that a covariance of a few
        thousand samples is well determined.
      width: channels of the first convolution; doubled at every halving, up to four times.
    """

    num_classes: int
    num_features: int = 48
    width: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b num_classes"]]:
        """Return (features, logits) of images in [-1, 1].

        Args:
          images: [b, h, w, c], h and w at least 8.

        Returns:
          features [b, d], the activations of the hidden layer, and logits [b, num_classes].
        """
        x = nn.silu(nn.Conv(self.width, (3, 3))(images))
        channels = self.width
        while x.shape[1] > 4:
            channels = min(2 * channels, 4 * self.width)
            x = nn.silu(nn.Conv(channels, (3, 3), strides=(2, 2))(x))
        x = nn.silu(nn.Conv(channels, (3, 3))(x))
        features = nn.silu(nn.Dense(self.num_features)(x.reshape(len(x), -1)))
        return features, nn.Dense(self.num_classes)(features).astype(jnp.float32)
