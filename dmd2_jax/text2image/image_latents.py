"""Images to a diffusion model's latents and back, and the check that both are numbers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size, nearest_size, say_sizes, sides, size_of
from dmd2_jax.networks.vae import AutoencoderKL
from dmd2_jax.networks.vae_tiny import AutoencoderTiny
from dmd2_jax.networks.vae_video import AutoencoderVideo
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Int, Key, Params

__all__ = [
    "Autoencoder",
    "check_finite",
    "decode_latents",
    "drawn_latents",
    "encode_images",
    "latent_shape",
]

Autoencoder = AutoencoderKL | AutoencoderTiny | AutoencoderVideo
"""Those that images go through."""


def encode_images(
    module: Autoencoder,
    params: Params,
    images: Float[Array, "b h w c"],
    eps: Float[Array, "b h2 w2 d"] | None = None,
) -> Float[Array, "b h2 w2 d"]:
    """Return a diffusion model's latents, the autoencoder's `scaled` of z = mean + std eps.

    Args:
      module: the autoencoder.
      params: its weights.
      images: [b, h, w, c] in [-1, 1].
      eps: standard normal; None: z is the mean. An AutoencoderTiny has no distribution and takes
        no notice of it.

    Raises:
      ValueError: if height or width are not divisible by the autoencoder's factor.
    """
    if isinstance(module, AutoencoderTiny):
        z = module.apply(params, images, method="encode")
    else:
        posterior = module.apply(params, images, method="encode")
        z = posterior.mean if eps is None else posterior.sample(eps)
    return module.apply(params, z, method="scaled")


def drawn_latents(
    module: Autoencoder,
    params: Params,
    images: Float[Array, "b h w c"],
    key: Key | None,
    numbers: Int[Array, " b"],
) -> Float[Array, "b h2 w2 d"]:
    """Return the latents of examples: the draw of example n is a function of (key, n) alone.

    Args:
      module, params, images: see `encode_images`.
      key: of the draws; None: the mean.
      numbers: of the examples.

    Raises:
      ValueError: see `encode_images`.
    """
    if key is None:
        return encode_images(module, params, images)
    shape = latent_shape(module, size_of(images.shape[1], images.shape[2]))
    draws = jax.vmap(lambda n: jax.random.normal(stream_key(key, "latents", n), shape))
    return encode_images(module, params, images, draws(numbers))


def decode_latents(
    module: Autoencoder, params: Params, latents: Float[Array, "b h w d"]
) -> Float[Array, "b h2 w2 c"]:
    """Return the images of a diffusion model's latents: their z (`unscaled`), decoded.

    Args:
      module: the autoencoder.
      params: its weights.
      latents: as `encode_images` returns them.

    Returns:
      Images, about [-1, 1] (not clipped).

    Raises:
      ValueError: if the latents are not this autoencoder's.
    """
    z = module.apply(params, latents, method="unscaled")
    return module.apply(params, z, method="decode")


def latent_shape(module: Autoencoder, resolution: Size) -> tuple[int, int, int]:
    """Return height, width and channels of the latent of an image.

    Args:
      module: the autoencoder.
      resolution: height and width of the image in pixels.

    Raises:
      ValueError: if one is no multiple of the autoencoder's factor.
    """
    factor, (height, width) = module.downscale, sides(resolution)
    if height % factor or width % factor:
        raise Refused(
            f"resolution={say_sizes(resolution)}, expected a multiple of {factor}, by which this "
            f"autoencoder divides it; try {say_sizes(nearest_size(resolution, factor))}."
        )
    return (height // factor, width // factor, module.latent_channels)


def check_finite(
    arrays: Float[np.ndarray, "b ..."],
    names: Sequence[str],
    module: Autoencoder,
    what: str = "latents",
) -> None:
    """Refuse latents or images that are not numbers, and say why they are not.

    The autoencoder of SDXL 1.0 overflows float16: its activations pass 65504, and whole images
    become NaN.

    Args:
      arrays: latents of some images, or images.
      names: of these images.
      module: that made the arrays.
      what: they are called.

    Raises:
      ValueError: naming the first image, the type of the computation and the remedy.
    """
    good = np.isfinite(arrays).reshape(len(arrays), -1).all(axis=1)
    if good.all():
        return
    dtype = jnp.dtype(module.dtype).name
    first = names[int(np.argmin(good))]
    if dtype == "float32":
        remedy = "its weights are damaged or no autoencoder's: download them again"
    else:
        said = ", of which its publisher warns" if getattr(module, "force_upcast", False) else ""
        remedy = (
            f"its activations overflow {dtype}{said}: run it in float32 (`vae_dtype=float32`), or "
            "take weights that were made for float16 (`vae=FOLDER`)"
        )
    raise Refused(
        f"the autoencoder's {what} of {first} are not finite when computed in {dtype} "
        f"({np.sum(~good)} of {len(good)} images), expected numbers; {remedy}."
    )
