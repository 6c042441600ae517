"""A diffusers pipeline folder for sampling: prompts to conditions, latents to images.

Everything of the pipeline but its U-Net, which is the teacher's or a student's.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.pipeline import AUTOENCODERS, PipelineIndex, read_pipeline_index
from dmd2_jax.families.stable_diffusion.family import with_negative
from dmd2_jax.text2image.image_latents import (
    Autoencoder,
    check_finite,
    decode_latents,
    downscale,
    latent_shape,
)
from dmd2_jax.text2image.text_encoder import (
    TextEncoders,
    encode_prompts,
    null_condition,
    read_text_encoders,
    size_ids,
)
from dmd2_jax.typing import Array, Float, Params

__all__ = [
    "TextToImage",
    "open_decoder",
    "open_pipeline",
    "own_resolution",
    "read_scheduler_config",
]

_BATCH = 8


@dataclass(frozen=True)
class TextToImage:
    """A pipeline without its U-Net.

    Attributes:
      index: what its model_index.json says.
      encoders: its tokenizers and text encoders.
      vae: its autoencoder.
      vae_params: the autoencoder's weights.
      scheduler: what its scheduler_config.json holds.
      resolution: height and width of the images in pixels.
    """

    index: PipelineIndex
    encoders: TextEncoders
    vae: Autoencoder
    vae_params: Params
    scheduler: Mapping[str, Any]
    resolution: int

    @property
    def is_sdxl(self) -> bool:
        """Whether a condition has `pooled` and `time_ids`."""
        return len(self.encoders.modules) == 2

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return latent_shape(self.vae, self.resolution)

    def condition(
        self, prompts: Sequence[str], negative: str | None = None
    ) -> dict[str, np.ndarray]:
        """Encode prompts into what the U-Net is conditioned on, with what guidance goes away from.

        Prompts of more tokens than the encoders read are cut, with a warning.

        Args:
          prompts: n >= 1 texts.
          negative: what guidance goes away from; None: no prompt, which SDXL's pipelines mean as
            zeros and others as the empty text.

        Returns:
          prompt_embeds [n, t, d] and, of SDXL, pooled [n, p] and time_ids [n, 6], those of whole
          images; and the negative_ parts of the same shapes. float32, on the host.

        Raises:
          ValueError: if there are no prompts.
        """
        cond: Any
        null: Any
        if negative is None and self.encoders.zero_null:
            cond, null = encode_prompts(self.encoders, prompts), null_condition(self.encoders)
        else:
            # The last of the texts, so that one program encodes all.
            texts = [*prompts, negative or ""] if prompts else []
            both = encode_prompts(self.encoders, texts)
            cond = {name: array[:-1] for name, array in both.items()}
            null = {name: array[-1:] for name, array in both.items()}
        if self.is_sdxl:
            side = (self.resolution, self.resolution)
            cond["time_ids"] = np.tile(size_ids(side, (0, 0), side), (len(prompts), 1))
        return {name: np.asarray(array) for name, array in with_negative(cond, null).items()}

    def decode(
        self,
        latents: Float[Array | np.ndarray, "n h w c"],
        *,
        batch_size: int = _BATCH,
        names: Sequence[str] | None = None,
    ) -> Float[np.ndarray, "n h2 w2 3"]:
        """Decode latents into images.

        Args:
          latents: scaled, as the U-Net makes them.
          batch_size: latents at a time; the last batch is filled up, so that one program does.
          names: what the images are called in an error; None: their numbers.

        Returns:
          [n, h2, w2, 3] float32, about [-1, 1] (not clipped).

        Raises:
          ValueError: if an image is not finite; the message names the remedy.
        """
        count = len(latents)
        images = _decoded(self.vae, self.vae_params, np.asarray(latents, np.float32), batch_size)
        check_finite(images, names or [f"image {i}" for i in range(count)], self.vae, "images")
        return images


def open_decoder(
    pipeline: str | os.PathLike,
) -> Callable[[Float[np.ndarray, "n h w c"]], Float[np.ndarray, "n h2 w2 3"]] | None:
    """Open the autoencoder of a pipeline alone, for pictures of latents.

    Args:
      pipeline: its folder.

    Returns:
      latents -> images, float32, not checked; None: it is no folder with an autoencoder.

    Raises:
      ValueError: if the autoencoder is damaged or of a class that is not built here.
    """
    folder = Path(pipeline).expanduser() / "vae"
    if not pipeline or not folder.is_dir():
        return None
    model, params = read_component(folder, expected=AUTOENCODERS)
    module: Any = model.module
    return lambda latents: _decoded(module, params, latents, _BATCH)


def _decoded(vae: Autoencoder, params: Params, latents: np.ndarray, batch_size: int) -> np.ndarray:
    count, parts = len(latents), []
    for begin in range(0, count, batch_size):
        rows = np.minimum(np.arange(begin, begin + batch_size), count - 1)
        parts.append(np.asarray(_decode(vae, params, latents[rows])))
    return np.concatenate(parts)[:count]


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae: Autoencoder, params: Params, latents: Array) -> Array:
    return decode_latents(vae, params, latents)


def open_pipeline(
    folder: str | os.PathLike,
    *,
    vae: str | os.PathLike | None = None,
    latent_side: int = 0,
    vae_dtype: jnp.dtype = jnp.float32,
    text_dtype: jnp.dtype = jnp.float32,
) -> TextToImage:
    """Open everything of a pipeline but its U-Net.

    Args:
      folder: of a diffusers pipeline, SD 1.x, 2.x or SDXL.
      vae: folder of another autoencoder than the pipeline's, an AutoencoderKL or AutoencoderTiny.
      latent_side: height and width of the latents; 0: those that the U-Net was made for.
      vae_dtype, text_dtype: types of the computation.

    Raises:
      FileNotFoundError: if it is no pipeline's folder.
      MissingPackageError: if transformers is not installed.
      ValueError: if a part is missing, damaged, of a class that is not built here, or does not fit
        the others.
    """
    index = read_pipeline_index(folder)
    vae_folder = index.part("vae") if vae is None else Path(vae).expanduser()
    scheduler = read_scheduler_config(index)
    model, vae_params = read_component(vae_folder, expected=index.expected("vae"), dtype=vae_dtype)
    module: Any = model.module
    encoders = read_text_encoders(index, dtype=text_dtype)
    side = latent_side * downscale(module) or own_resolution(index, module)
    return TextToImage(index, encoders, module, vae_params, scheduler, side)


def read_scheduler_config(index: PipelineIndex) -> dict[str, Any]:
    """Read what a pipeline's scheduler_config.json holds.

    Its class is the one that model_index.json names, which diffusers makes of the settings.

    Raises:
      ValueError: if there is none, or it is damaged.
    """
    folder = index.folder / "scheduler"
    try:
        config = read_component_config(folder, "scheduler_config.json")
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    return config | ({"_class_name": index.scheduler} if index.scheduler else {})


def own_resolution(index: PipelineIndex, vae: Autoencoder) -> int:
    """Return the resolution in pixels that a pipeline's U-Net was made for.

    Raises:
      ValueError: if its config.json has no sample_size.
    """
    side = read_component_config(index.part("unet")).get("sample_size")
    if type(side) is not int or not 0 < side < 2**16:
        raise Refused(
            f"{index.folder}/unet/config.json has sample_size = {side!r}, expected a number; give "
            "--resolution."
        )
    return side * downscale(vae)
