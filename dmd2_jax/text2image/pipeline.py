"""A diffusers pipeline folder for sampling: prompts to conditions, latents to images.

Everything of the pipeline but its denoising network, which is the teacher's or a student's.
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
from dmd2_jax.config.sizes import Size, sides, size_of
from dmd2_jax.families.published.conditions import with_negative
from dmd2_jax.families.published.folder import (
    has_variant,
    read_component,
    read_component_config,
)
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import AUTOENCODERS, PipelineIndex, read_pipeline_index
from dmd2_jax.networks.published_config import square_side
from dmd2_jax.runtime.places import path_of
from dmd2_jax.text2image.image_latents import (
    Autoencoder,
    decode_latents,
    latent_shape,
)
from dmd2_jax.text2image.text_encoder import (
    TextEncoders,
    encode_prompts,
    null_condition,
    read_text_encoders,
    size_ids,
)
from dmd2_jax.typing import Array, DType, Float, Params

__all__ = [
    "LatentDecoder",
    "TextToImage",
    "decode",
    "open_autoencoder",
    "open_decoder",
    "open_pipeline",
    "own_resolution",
    "pipeline_autoencoder",
    "read_scheduler_config",
]

_BATCH = 8
_TRANSFORMER_SIDE = 128  # of the latents, where config.json has no sample_size: 1024 pixels


@dataclass(frozen=True)
class LatentDecoder:
    """An autoencoder alone; its weights are read when they are first needed.

    Attributes:
      vae: the network.
      folder: of its files.
      resolution: height and width of the images in pixels; 0: not said.
    """

    vae: Autoencoder
    folder: Path
    resolution: Size = 0

    @functools.cached_property
    def vae_params(self) -> Params:
        """Its weights.

        Raises:
          ValueError: if they are missing or damaged.
        """
        return read_component(self.folder, expected=AUTOENCODERS)[1]


def open_autoencoder(
    folder: str | os.PathLike, *, latent_size: Size = 0, dtype: DType = jnp.float32
) -> LatentDecoder:
    """Open an autoencoder's folder, or that of a pipeline which has one, reading no weights yet.

    Args:
      folder: with config.json, or vae/config.json.
      latent_size: height and width of the latents; 0: not said.
      dtype: of the computation.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is of a class that is not built here, or its settings are damaged.
    """
    own = path_of(folder).expanduser()
    own = own / "vae" if (own / "vae").is_dir() else own
    config = read_component_config(own)
    try:
        model = PublishedModel.from_config(config, expected=AUTOENCODERS, dtype=dtype)
    except ValueError as error:
        raise Refused(f"{own}: {error}") from error
    module: Any = model.module
    return LatentDecoder(module, own, _pixels(module, latent_size) if latent_size else 0)


@dataclass(frozen=True)
class TextToImage:
    """A pipeline without its denoising network; weights are read when they are first needed.

    Attributes:
      index: what its model_index.json says.
      vae: its autoencoder.
      vae_folder: of the autoencoder.
      scheduler: what its scheduler_config.json holds.
      resolution: height and width of the images in pixels: a number where they are equal.
      text_dtype: of the text encoders' computation.
    """

    index: PipelineIndex
    vae: Autoencoder
    vae_folder: Path
    scheduler: Mapping[str, Any]
    resolution: Size
    text_dtype: DType = jnp.float32

    @functools.cached_property
    def encoders(self) -> TextEncoders:
        """The tokenizers and text encoders.

        Raises:
          MissingPackageError: if transformers is not installed.
          ValueError: if a part is missing, damaged, or does not fit the others.
        """
        return read_text_encoders(self.index, dtype=self.text_dtype)

    @functools.cached_property
    def vae_params(self) -> Params:
        """The autoencoder's weights.

        Raises:
          ValueError: if they are missing or damaged.
        """
        own = self.vae_folder == self.index.folder / "vae"
        variant = self.index.variant_of("vae") if own else None
        expected = self.index.expected("vae")
        return read_component(self.vae_folder, expected=expected, variant=variant)[1]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return latent_shape(self.vae, self.resolution)

    def condition(
        self, prompts: Sequence[str], negative: str | None = None
    ) -> dict[str, np.ndarray]:
        """Encode prompts into the network's conditions, with what guidance goes away from.

        Prompts of more tokens than the encoders read are cut, with a warning.

        Args:
          prompts: n >= 1 texts.
          negative: what guidance goes away from; None: no prompt, which SDXL's pipelines mean as
            zeros and others as the empty text.

        Returns:
          prompt_embeds [n, t, d], with pooled [n, p] or prompt_mask [n, t] where the network takes
          it, and of SDXL time_ids [n, 6], those of whole images; and the negative_ parts of the
          same shapes. float32, on the host.

        Raises:
          ValueError: if there are no prompts.
        """
        cond: Any
        null: Any
        encoders = self.encoders.fitted([*prompts, negative or ""])
        if negative is None and encoders.zero_null:
            cond, null = encode_prompts(encoders, prompts), null_condition(encoders)
        else:
            # The last of the texts, so that one program encodes all.
            texts = [*prompts, negative or ""] if prompts else []
            both = encode_prompts(encoders, texts)
            cond = {name: array[:-1] for name, array in both.items()}
            null = {name: array[-1:] for name, array in both.items()}
        if self.index.with_sizes:
            size = sides(self.resolution)
            cond["time_ids"] = np.tile(size_ids(size, (0, 0), size), (len(prompts), 1))
        return {name: np.asarray(array) for name, array in with_negative(cond, null).items()}


def open_decoder(
    pipeline: str | os.PathLike,
    variant: str = "",
) -> Callable[[Float[np.ndarray, "n h w c"]], Float[np.ndarray, "n h2 w2 3"]] | None:
    """Open the autoencoder of a pipeline, or one alone, for pictures of latents.

    Args:
      pipeline: its folder, or that of the autoencoder.
      variant: of its weights, where it has them.

    Returns:
      latents -> images, float32, not checked; None: it is no folder with an autoencoder.

    Raises:
      ValueError: if the autoencoder is damaged or of a class that is not built here.
    """
    if not pipeline:
        return None
    folder = path_of(pipeline).expanduser()
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file():
        return None
    there = variant if variant and has_variant(folder, variant) else None
    model, params = read_component(folder, expected=AUTOENCODERS, variant=there)
    module: Any = model.module
    return lambda latents: _decoded(module, params, latents, _BATCH)


def _decoded(vae: Autoencoder, params: Params, latents: np.ndarray, batch_size: int) -> np.ndarray:
    count, parts = len(latents), []
    for begin in range(0, count, batch_size):
        # The last batch is filled up, so that one program does.
        rows = np.minimum(np.arange(begin, begin + batch_size), count - 1)
        parts.append(np.asarray(decode(vae, params, latents[rows])))
    return np.concatenate(parts)[:count]


@functools.partial(jax.jit, static_argnums=0)
def decode(
    vae: Autoencoder, params: Params, latents: Float[Array, "n h w c"]
) -> Float[Array, "n h2 w2 3"]:
    """Decode latents, scaled as the U-Net makes them, into images; see `decode_latents`."""
    return decode_latents(vae, params, latents)


def open_pipeline(
    folder: str | os.PathLike | PipelineIndex,
    *,
    vae: str | os.PathLike | None = None,
    latent_size: Size = 0,
    vae_dtype: DType = jnp.float32,
    text_dtype: DType = jnp.float32,
) -> TextToImage:
    """Open everything of a pipeline but its denoising network, reading no weights yet.

    Args:
      folder: of a diffusers pipeline, or what its index says.
      vae: folder of another autoencoder than the pipeline's, an AutoencoderKL or AutoencoderTiny.
      latent_size: height and width of the latents; 0: those that the network was made for.
      vae_dtype, text_dtype: types of the computation.

    Raises:
      FileNotFoundError: if it is no pipeline's folder.
      ValueError: if a part is missing or of a class that is not built here, or its settings are
        damaged.
    """
    index = folder if isinstance(folder, PipelineIndex) else read_pipeline_index(folder)
    for part in (name for pair in index.text_parts for name in pair):
        index.part(part)
    scheduler = read_scheduler_config(index)
    module, vae_folder = pipeline_autoencoder(index, vae, dtype=vae_dtype)
    size = _pixels(module, latent_size) if latent_size else own_resolution(index, module)
    return TextToImage(index, module, vae_folder, scheduler, size, text_dtype)


def _pixels(module: Autoencoder, latent: Size) -> Size:
    """Return the size of the images whose latents are of a size."""
    height, width = (side * module.downscale for side in sides(latent))
    return size_of(height, width)


def pipeline_autoencoder(
    index: PipelineIndex, vae: str | os.PathLike | None = None, *, dtype: DType = jnp.float32
) -> tuple[Autoencoder, Path]:
    """Open a pipeline's autoencoder, or another one, reading no weights yet.

    Args:
      index: what the pipeline's model_index.json says.
      vae: folder of another one than its own.
      dtype: of the computation.

    Returns:
      (the autoencoder, its folder).

    Raises:
      ValueError: if it is missing, damaged or of a class that is not built here.
    """
    folder = index.part("vae") if vae is None else path_of(vae).expanduser()
    try:
        config = read_component_config(folder)
        model = PublishedModel.from_config(config, expected=index.expected("vae"), dtype=dtype)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    module: Any = model.module
    return module, folder


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
    """Return the resolution in pixels that a pipeline's denoising network was made for.

    Raises:
      ValueError: if its config.json has no sample_size, and it is a U-Net.
    """
    default = None if index.network == "unet" else _TRANSFORMER_SIDE
    side = square_side(read_component_config(index.part(index.network)).get("sample_size", default))
    if type(side) is not int or not 0 < side < 2**16:
        raise Refused(
            f"{index.folder}/{index.network}/config.json has sample_size = {side!r}, expected a "
            "number; give `resolution=`."
        )
    return side * vae.downscale
