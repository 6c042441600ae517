"""The Stable Diffusion family: SD 1.x, SD 2.x and SDXL, in the latents of their autoencoder.

Time is a discrete step, 0 the least noisy, and the network predicts eps, v or x_0. A condition is a
dict of arrays with a leading batch axis:

| key                      | shape     | what                                          | where    |
|--------------------------|-----------|-----------------------------------------------|----------|
| `prompt_embeds`          | [b, n, d] | the prompt's tokens, from the text encoders   | always   |
| `pooled`                 | [b, p]    | the prompt as one vector                      | SDXL     |
| `time_ids`               | [b, 6]    | height, width, crop top, left, target h and w | SDXL     |
| `negative_prompt_embeds` | [b, n, d] | what guidance goes away from                  | optional |
| `negative_pooled`        | [b, p]    | likewise                                      | optional |
| `guidance`               | [b]       | the scale, of a U-Net with time_cond_proj_dim | optional |

Guidance reads the unconditional embeddings out of the condition itself. Where it has none they are
those that `with_null` was given; SD 1.x and 2.x need those of the empty prompt, SDXL was trained
with zeros and takes them by default. `build` makes everything from a U-Net's and a scheduler's
config; `read` also reads the weights of a diffusers pipeline folder.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import refuse, unknown_faults
from dmd2_jax.config.sizes import Size, not_divided, sides
from dmd2_jax.families.published.conditions import (
    Condition,
    null_conditions,
    with_negative,
)
from dmd2_jax.families.published.configs import SCHEDULER, SD15_UNET, SDXL_UNET
from dmd2_jax.families.published.family import PublishedFamily
from dmd2_jax.families.published.folder import (
    read_component_config,
    read_component_tensors,
)
from dmd2_jax.families.published.lora_file import is_lora
from dmd2_jax.families.published.model import PublishedModel, class_of
from dmd2_jax.families.published.scheduler import read_scheduler, recorded_settings
from dmd2_jax.families.stable_diffusion.classes import CLASSES, UNET
from dmd2_jax.families.stable_diffusion.denoiser import needed_parts, optional_parts, unet_denoiser
from dmd2_jax.families.stable_diffusion.original_names import unet_names
from dmd2_jax.families.stable_diffusion.settings import defaults, faults
from dmd2_jax.families.stable_diffusion.single_file import (
    check_prediction,
    holds_original_names,
    unet_of,
)
from dmd2_jax.networks.guidance_embedding import GUIDANCE, WIDTH, without_scale
from dmd2_jax.networks.lora import STABLE_DIFFUSION_TARGETS
from dmd2_jax.networks.published_config import square_side
from dmd2_jax.runtime.distributed import say_once
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Params
from dmd2_jax.weights.weight_files import (
    Weights,
    read_weights,
    strip_prefix,
)

__all__ = [
    "PIPELINES",
    "READS",
    "Condition",
    "StableDiffusionFamily",
    "build",
    "open_folder",
    "read",
    "with_negative",
]

PIPELINES = {"StableDiffusionPipeline": 7.5, "StableDiffusionXLPipeline": 5.0}
"""The pipelines that hold such a U-Net, with diffusers' default guidance of each."""

READS = (UNET,)
"""The classes of config.json that `read` opens."""

_PUBLISHED = {"sd15": SD15_UNET, "sdxl": SDXL_UNET}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_PARTS = ("unet", "scheduler", "variant", "guidance")
_PREFIX, _INDEX = "published:", "model_index.json"
_TOKENS = 77


@dataclasses.dataclass(frozen=True)
class StableDiffusionFamily(PublishedFamily):
    """A U-Net as a Denoiser, with what is needed to make, read and write its weights.

    Its features are the middle block's output; see the module for `cond`.
    """

    @property
    def is_sdxl(self) -> bool:
        """Whether a condition has `pooled` and `time_ids`."""
        return self.model.module.added is not None

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that the SDXL recipe adapts."""
        return STABLE_DIFFUSION_TARGETS

    @property
    def time_layer(self) -> str:
        """The layer that makes the embedding of the time."""
        return "time_embedding.linear_2"

    @property
    def guidance_layer(self) -> str:
        """The layer that a guidance scale's embedding is added before, as `cond_proj` does."""
        return "time_embedding.linear_1"

    def with_null(self, null: Condition) -> "StableDiffusionFamily":
        """Return the family whose guidance goes away from this condition, where none is given.

        Args:
          null: of no prompt, as a text encoder and `dmd2 cache` give it: prompt_embeds [1, n, d],
            and for SDXL pooled [1, p].

        Raises:
          ValueError: if it was made by text encoders of another U-Net.
        """
        width, expected = null["prompt_embeds"].shape[-1], self.model.module.context_dim
        if width != expected or ("pooled" in null) != self.is_sdxl:
            raise Refused(
                f"conditions of {sorted(null)} with prompt_embeds of width {width}, expected width "
                f"{expected} and {'pooled beside it' if self.is_sdxl else 'no pooled'} for this "
                "U-Net; write the cache with this model's own pipeline."
            )
        arrays = {name: jnp.asarray(array, jnp.float32) for name, array in null.items()}
        null_cond = null_conditions(
            needed_parts(self.is_sdxl),
            arrays,
            zeros=self.is_sdxl,
            optional=optional_parts(self.model.module),
        )
        denoiser = self.denoiser._replace(null_cond=null_cond)
        tokens = null["prompt_embeds"].shape[-2]
        return dataclasses.replace(self, denoiser=denoiser, null_tokens=tokens)

    def with_scale_input(self) -> PublishedModel:
        """Return the U-Net that takes the guidance scale as diffusers' pipelines give it."""
        config = {**self.model.config, "time_cond_proj_dim": WIDTH}
        module = self.model.module.clone(time_condition_dim=WIDTH)
        return dataclasses.replace(self.model, config=config, module=module)

    def to_scale_input(self, params: Params) -> Params:
        """Return the weights of that U-Net.

        Args:
          params: with an embedding of the scale (networks/guidance_embedding.py).
        """
        (kernel,) = params[GUIDANCE].values()
        flat = flatten_dict(without_scale(params))
        flat["params", "time_embedding", "cond_proj", "kernel"] = kernel
        return unflatten_dict(flat)

    def cond_shapes(self, *lead: int, tokens: int | None = None) -> dict[str, Any]:
        """Return a batch's condition with shapes in place of arrays.

        Args:
          lead: the leading axes, such as b.
          tokens: n, of the prompt; by default that of the condition of no prompt, or 77 as CLIP's
            encoders give.

        Returns:
          All keys that the family knows: what guidance goes away from is among them exactly where
          it has to be given.
        """
        unet = self.model.module
        _, _, _, pooled, time_ids, _ = self.model.example_inputs()

        def array(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)

        prompt = array(tokens or self.null_tokens or _TOKENS, unet.context_dim)
        if pooled is None and self.null_tokens:
            return {"prompt_embeds": prompt}
        if pooled is None:
            return {"prompt_embeds": prompt, "negative_prompt_embeds": prompt}
        return {
            "prompt_embeds": prompt,
            "pooled": array(*pooled.shape[1:]),
            "time_ids": array(*time_ids.shape[1:]),
        }

    def original_names(self) -> dict[str, str]:
        """Return the U-Net's published names, and what the original programs call the same."""
        return unet_names(self.tensor_shapes())

    def from_weights(self, weights: Weights, prefix: str | None = None) -> Params:
        """Turn what a file of weights holds into weights.

        Args:
          weights: from `read_weights`.
          prefix: of the tensors to take, where the file holds several networks.

        Raises:
          ValueError: if they are of another network; the message lists the differences.
        """
        if is_lora(weights.tensors):
            raise Refused(
                "a LoRA file, which holds adapters and no network, expected whole weights; merge "
                "it into a teacher by config.teacher.lora."
            )
        check_prediction(weights, self.diffusion)
        names = self.tensor_shapes()
        if not holds_original_names(weights.tensors):
            return self.from_state_dict(strip_prefix(weights.tensors, names, prefix))
        try:
            return self.from_state_dict(unet_of(weights.tensors, names, prefix))
        except ValueError as error:
            raise Refused(
                f"a checkpoint of the original names (input_blocks.*): {error}"
            ) from error

    def load(self, path: str | os.PathLike) -> Params:
        """Read weights from a file of the published names, a U-Net's folder or a pipeline's.

        Raises:
          ValueError: if they cannot be read or do not fit; the message names the path.
        """
        path = fetched(path)
        try:
            if path.is_dir():
                stem = CLASSES[UNET].file_stem
                variant = self.variant or None
                return self.from_state_dict(
                    read_component_tensors(_unet_folder(path), stem, variant)
                )
            return self.from_weights(read_weights(path))
        except ValueError as error:
            raise Refused(f"{path}: {error}") from error


def build(model_config: Mapping[str, Any]) -> StableDiffusionFamily:
    """Build the family's members from a config.

    Args:
      model_config: keys of `config.model`; those that are missing have their defaults. In place of
        `pipeline` it may have `unet` and `scheduler`, what a U-Net's config.json and a
        scheduler_config.json hold; then the resolution is by default the U-Net's sample_size. And
        `variant`, of the weights' files in a folder; `guidance`, of a U-Net that takes the scale.

    Returns:
      The family.

    Raises:
      ValueError: if a key or a value is unknown, or asks for what is not built here.
    """
    config = {key: value for key, value in model_config.items() if key not in _PARTS}
    if "unet" in model_config:
        unet_config, scheduler = model_config["unet"], model_config.get("scheduler", ())
    else:
        unet_config, scheduler = _pipeline_configs(str(config.get("pipeline") or ""))
    for name, part in (("unet", unet_config), ("scheduler", scheduler)):
        if not isinstance(part, Mapping):
            file = "a U-Net's config.json" if name == "unet" else "a scheduler_config.json"
            raise Refused(
                f"model.{name}={part!r}, expected what {file} holds; take one of "
                "families/published/configs.py, or read a pipeline folder."
            )
    class_of(unet_config, (UNET,))
    if "unet" in model_config and not config.get("resolution"):
        side = square_side(unet_config.get("sample_size"))
        if type(side) is not int:
            raise Refused(
                f"the latents' side is {side!r}, expected one number; set sample_size in the "
                "U-Net's config.json, for example to 64 for SD 1.5 at 512 pixels."
            )
        config["resolution"] = side
    config = defaults().to_dict() | config
    refuse(
        list(unknown_faults(config, defaults(), "stable_diffusion")) or list(faults(config)),
        "config.model",
    )
    model = PublishedModel.from_config(
        unet_config,
        classes=CLASSES,
        dtype=_DTYPES[config["dtype"]],
        remat=config["remat"],
    )
    unet = model.module.clone(scan_layers=config["scan_layers"])
    model = dataclasses.replace(model, module=unet)
    height, width = sides(config["resolution"])
    if unet.in_channels != unet.out_channels:
        raise Refused(
            f"in_channels={unet.in_channels}, expected out_channels={unet.out_channels}: networks "
            "for inpainting and the like take more than a latent; use a text-to-image model."
        )
    unit = 2 ** (len(unet.block_channels) - 1)
    if height % unit or width % unit:
        raise Refused(not_divided(config["resolution"], unit))
    diffusion = read_scheduler(scheduler, may_clip=unet.added is not None)
    usual = PIPELINES["StableDiffusionXLPipeline" if unet.added else "StableDiffusionPipeline"]
    guidance = float(model_config.get("guidance", usual))
    return StableDiffusionFamily(
        unet_denoiser(unet, diffusion, guidance),
        model,
        (height, width, unet.in_channels),
        diffusion,
        variant=model_config.get("variant", ""),
        input_guidance=guidance if unet.time_condition_dim else None,
    )


def read(
    folder: str | os.PathLike,
    *,
    resolution: Size | None = None,
    dtype: str = "float32",
    remat: str = "none",
    variant: str = "",
) -> tuple[StableDiffusionFamily, Params]:
    """Read the U-Net and the scheduler of a diffusers pipeline folder.

    Args:
      folder: with unet/ and scheduler/; or a U-Net's alone, with config.json, which does not say
        what it was trained on: that of SD 1.x and SDXL is taken, aloud.
      resolution, dtype, remat, variant: as in `build`.

    Returns:
      (the family, the U-Net's weights).

    Raises:
      ValueError: if a part is missing, damaged, or of a class that is not built here.
    """
    options: dict[str, Any] = {"resolution": resolution, "dtype": dtype, "remat": remat}
    options["variant"] = variant
    path = path_of(folder)
    if (path / "config.json").is_file() and not (path / "unet").is_dir():
        say_once(f"{folder} has no scheduler: the noise of SD 1.x and SDXL is taken, and eps.")
        family = build({"unet": read_component_config(path), "scheduler": SCHEDULER} | options)
    else:
        family = open_folder(folder, **options)
    return family, family.load(folder)


def open_folder(
    folder: str | os.PathLike,
    *,
    resolution: Size | None = None,
    dtype: str = "float32",
    remat: str = "none",
    variant: str = "",
) -> StableDiffusionFamily:
    """Build the family of a diffusers pipeline folder as `read` does, reading no weights."""
    options = {"resolution": resolution, "dtype": dtype, "remat": remat, "variant": variant}
    try:
        unet, schedule = _folder_configs(path_of(folder))
        recorded = recorded_settings(schedule)
        options["resolution"] = resolution or recorded.get("resolution")
        told = {"guidance": recorded["guidance"]} if "guidance" in recorded else {}
        return build({"unet": unet, "scheduler": schedule} | told | options)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error


def _pipeline_configs(pipeline: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the configs of the U-Net and the scheduler that `model.pipeline` names."""
    folder, name = path_of(pipeline).expanduser(), pipeline.removeprefix(_PREFIX)
    if name in _PUBLISHED:
        if name == pipeline and any((folder / part).exists() for part in ("unet", _INDEX)):
            _say_taken(folder.absolute(), name)
        else:
            return _PUBLISHED[name], SCHEDULER
    if not pipeline or not folder.is_dir():
        raise Refused(
            f"model.pipeline={pipeline!r} is no folder, expected that of a diffusers pipeline, or "
            f"one of {sorted(_PUBLISHED)} for the published shapes; set `config.model.pipeline=`."
        )
    try:
        return _folder_configs(folder)
    except ValueError as error:
        raise Refused(f"{pipeline}: {error}") from error


def _say_taken(folder: Path, name: str) -> None:
    say_once(
        f"model.pipeline={name}: the folder {folder} is taken, not the published shapes, which are "
        f"{_PREFIX}{name}."
    )


def _folder_configs(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    unet = read_component_config(folder / "unet")
    return unet, read_component_config(folder / "scheduler", "scheduler_config.json")


def _unet_folder(folder: Path) -> Path:
    """Return a pipeline folder's U-Net, or the folder itself."""
    return folder / "unet" if (folder / "unet").is_dir() else folder
