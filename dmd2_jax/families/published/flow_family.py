"""A transformer of diffusers that predicts a flow under a prompt, as a family.

Time is in (0, 1], 1 is noise: x_t = (1 - t) x_0 + t eps, and x_0 = x_t - t v of the prediction v. A
condition is a dict of arrays with a leading batch axis:

| key                      | shape     | what                                    | where           |
|--------------------------|-----------|-----------------------------------------|-----------------|
| `prompt_embeds`          | [b, n, d] | the prompt's tokens                     | always          |
| `pooled`                 | [b, p]    | the prompt as one vector                | SD 3, FLUX.1    |
| `prompt_mask`            | [b, n]    | 1: a token of the prompt, 0: filling    | Z-Image, Qwen   |
| `guidance`               | [b]       | the scale that FLUX.1-dev takes         | optional there  |
| `negative_prompt_embeds` | [b, n, d] | what guidance goes away from            | optional        |
| `negative_pooled`        | [b, p]    | likewise                                | optional        |
| `negative_prompt_mask`   | [b, n]    | likewise                                | optional        |

Without negatives guidance goes away from the empty prompt, which `with_null` gives.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import refuse, unknown_faults
from dmd2_jax.config.sizes import not_divided, sides
from dmd2_jax.denoiser import Denoiser, Guide
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.families.published.conditions import Condition, check_condition, null_conditions
from dmd2_jax.families.published.family import PublishedFamily
from dmd2_jax.families.published.flow_scheduler import read_flow_scheduler
from dmd2_jax.families.published.folder import (
    read_component_tensors,
    transformer_configs,
    transformer_folder,
)
from dmd2_jax.families.published.lora_file import is_lora
from dmd2_jax.families.published.model import PublishedClass, PublishedModel, class_of
from dmd2_jax.families.published.pipeline import says_distilled
from dmd2_jax.families.published.scheduler import Diffusion, recorded_settings
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import square_side
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Array, Params
from dmd2_jax.weights.weight_files import Weights, read_weights, strip_prefix

__all__ = ["FlowFamily", "FlowNetwork"]

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_NETWORK, _SCHEDULER = "transformer", "scheduler"
_PARTS = (_NETWORK, _SCHEDULER, "variant", "distilled")
_PREFIX = "published:"
_THOUSAND = 1000.0

Configs = tuple[Mapping[str, Any], Mapping[str, Any]]


def _with_pooled(module: Any, tokens: int) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeds": (tokens, module.context_dim), "pooled": (module.pooled_dim,)}


@dataclasses.dataclass(frozen=True)
class FlowNetwork:
    """What tells one kind of such transformers from another.

    Attributes:
      class_name: what config.json calls it.
      published: what is known of that class, whose module is a `DenoisingTransformer`.
      configs: name -> configs of the transformer and the scheduler of a release.
      defaults, faults: of the family's settings.
      time_scale: what the schedule's time is multiplied by for the network.
      tokens: of a prompt, where none is known.
      side: of the latents, where config.json has no sample_size.
      guided: whether guidance goes away from a negative prompt at all.
      lora_targets: the layers that adapters are for.
      parts: (module, tokens of a prompt) -> the shapes of one condition's arrays, by name, in the
        order in which the network takes them.
      backwards: whether the network is given 1 - t, and predicts x_0 - eps.
      scheduler_notes: what its pipeline adds to a scheduler_config.json (`PIPELINE_SHIFTS`).
      time_layer: the end of the name of the layer that makes the embedding of the time.
      guidance_layer: the end of the name of the layer whose input a guidance scale is added to.
      guide: its own guidance, of a pipeline that has another than u + w (c - u).
    """

    class_name: str
    published: PublishedClass
    configs: Mapping[str, Configs]
    defaults: Callable[[], ConfigDict]
    faults: Callable[[Mapping[str, Any]], Any]
    time_scale: float
    tokens: int
    side: int
    guided: bool
    lora_targets: tuple[str, ...]
    parts: Callable[[Any, int], Mapping[str, tuple[int, ...]]] = _with_pooled
    backwards: bool = False
    scheduler_notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time_layer: str = "timestep_embedder.linear_2"
    guidance_layer: str = "timestep_embedder.linear_1"
    guide: Guide | None = None

    @property
    def classes(self) -> dict[str, PublishedClass]:
        """The class by its name."""
        return {self.class_name: self.published}

    def build(self, model_config: Mapping[str, Any]) -> "FlowFamily":
        """Build the family's members from a config.

        Args:
          model_config: keys of `config.model`; those that are missing have their defaults. In place
            of `pipeline` it may have `transformer` and `scheduler`, what their config files hold
            ({} for a flow without a shift), and `distilled`, what its index says; then the
            resolution is by default the transformer's sample_size. And `variant`, of the weights'
            files in a folder.

        Returns:
          The family.

        Raises:
          ValueError: if a key or a value is unknown, or asks for what is not built here.
        """
        return _build(self, model_config)

    def open_folder(self, folder: str | os.PathLike, **options: Any) -> "FlowFamily":
        """Build the family of a pipeline's folder or of a transformer's, reading no weights.

        Args:
          folder: with transformer/ and scheduler/, or with config.json; then the flow has no shift.
          options: resolution, dtype, remat, variant and the family's other settings; by default
            a student's are those that its export recorded.

        Raises:
          ValueError: if a part is missing, damaged, or of a class that is not built here.
        """
        try:
            found = _folder_configs(path_of(folder))
            known, recorded = self.defaults(), recorded_settings(found.get(_SCHEDULER, {}))
            trained_with = {key: value for key, value in recorded.items() if key in known}
            return self.build(found | trained_with | options)
        except ValueError as error:
            raise Refused(f"{folder}: {error}") from error

    def read(self, folder: str | os.PathLike, **options: Any) -> tuple["FlowFamily", Params]:
        """Read the transformer of a diffusers pipeline's folder, or of its own.

        Args:
          folder, options: as in `open_folder`.

        Returns:
          (the family, the transformer's weights).

        Raises:
          ValueError: as `open_folder` does, or if the weights are missing or damaged.
        """
        family = self.open_folder(folder, **options)
        return family, family.load(folder)


@dataclasses.dataclass(frozen=True)
class FlowFamily(PublishedFamily):
    """A flow transformer as a Denoiser, with what is needed to make, read and write its weights.

    Its features are the image's tokens after some blocks, on their grid.

    Attributes:
      network: what kind it is.
    """

    network: FlowNetwork = dataclasses.field(kw_only=True)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that adapters are for, where the config does not say."""
        return self.network.lora_targets

    @property
    def time_layer(self) -> str:
        """The end of the name of the layer that makes the embedding of the time."""
        return self.network.time_layer

    @property
    def guidance_layer(self) -> str:
        """The end of the name of the layer whose input a guidance scale is added to."""
        return self.network.guidance_layer

    @property
    def image_tokens(self) -> int:
        """How many tokens the network makes of an image."""
        return super().image_tokens // self.model.module.patch**2

    @property
    def _optional(self) -> tuple[str, ...]:
        return _optional(self.model.module)

    def with_null(self, null: Condition) -> "FlowFamily":
        """Return the family whose guidance goes away from this condition, where none is given.

        Args:
          null: of no prompt, as text encoders and `dmd2 cache` give it: prompt_embeds [1, n, d] and
            the other parts.

        Raises:
          ValueError: if it was made by text encoders of another network.
        """
        tokens = null["prompt_embeds"].shape[-2] if "prompt_embeds" in null else 0
        shapes = self.network.parts(self.model.module, tokens)
        widths = {name: null[name].shape[-1] for name in shapes if name in null}
        if widths != (expected := {name: shape[-1] for name, shape in shapes.items()}):
            raise Refused(
                f"conditions of widths {widths}, expected {expected} for this network; write the "
                "cache with this model's own pipeline."
            )
        arrays = {name: jnp.asarray(null[name], jnp.float32) for name in shapes}
        null_cond = null_conditions(tuple(shapes), arrays, optional=self._optional)
        denoiser = self.denoiser._replace(null_cond=null_cond)
        return dataclasses.replace(self, denoiser=denoiser, null_tokens=tokens)

    def cond_shapes(self, *lead: int, tokens: int | None = None) -> dict[str, Any]:
        """Return a batch's condition with shapes in place of arrays.

        Args:
          lead: the leading axes, such as b.
          tokens: n, of the prompt; by default that of the condition of no prompt, or the published
            pipelines' number.

        Returns:
          What guidance goes away from is among them exactly where it has to be given.
        """
        count = tokens or self.null_tokens or self.network.tokens
        parts = self.network.parts(self.model.module, count)
        arrays = {k: jax.ShapeDtypeStruct((*lead, *s), jnp.float32) for k, s in parts.items()}
        if self.null_tokens or not self.network.guided:
            return arrays
        return arrays | {f"negative_{name}": array for name, array in arrays.items()}

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
                "a LoRA file, which holds adapters and no network, expected whole weights; give "
                "those of the network."
            )
        tensors = strip_prefix(weights.tensors, self.tensor_shapes(), prefix)
        return self.from_state_dict(tensors)

    def load(self, path: str | os.PathLike) -> Params:
        """Read weights from a file of the published names, a transformer's folder or a pipeline's.

        Raises:
          ValueError: if they cannot be read or do not fit; the message names the path.
        """
        path = fetched(path)
        try:
            if not path.is_dir():
                return self.from_weights(read_weights(path))
            stem, variant = self.model.kind.file_stem, self.variant or None
            return self.from_state_dict(
                read_component_tensors(transformer_folder(path), stem, variant)
            )
        except ValueError as error:
            raise Refused(f"{path}: {error}") from error


def _build(network: FlowNetwork, model_config: Mapping[str, Any]) -> FlowFamily:
    config = {key: value for key, value in model_config.items() if key not in _PARTS}
    found = model_config
    if _NETWORK not in found:
        found = _named_configs(network, str(config.get("pipeline") or ""))
    elif not config.get("resolution"):
        config["resolution"] = _own_side(found[_NETWORK], network)
    own, scheduler = found[_NETWORK], found.get(_SCHEDULER) or {}
    class_of(own, (network.class_name,))
    defaults = network.defaults()
    config = defaults.to_dict() | config
    faults = list(unknown_faults(config, defaults, str(defaults.family)))
    refuse(faults or list(network.faults(config)), "config.model")
    model = PublishedModel.from_config(
        own, classes=network.classes, dtype=_DTYPES[config["dtype"]], remat=config["remat"]
    )
    if not _optional(model.module) and config.get("guidance") != defaults.get("guidance"):
        raise Refused(
            f"config.model.guidance={config['guidance']:g} of a transformer that takes no guidance "
            f"scale, expected {defaults.guidance:g}, the default, which nothing reads; leave it "
            "away."
        )
    blocks = chosen_blocks(tuple(config["feature_blocks"]), model.module.num_blocks)
    module = model.module.clone(scan_layers=config["scan_layers"], feature_blocks=blocks)
    patch, (height, width) = module.patch, sides(config["resolution"])
    if height % patch or width % patch:
        raise Refused(not_divided(config["resolution"], patch))
    noted = {**scheduler, **network.scheduler_notes}
    diffusion = read_flow_scheduler(noted, height // patch * (width // patch))
    denoiser = _denoiser(network, module, diffusion, config.get("guidance", 0.0))
    channels = model.example_inputs()[0].shape[-1]
    return FlowFamily(
        denoiser,
        dataclasses.replace(model, module=module),
        (height, width, channels),
        diffusion,
        variant=model_config.get("variant", ""),
        input_guidance=config["guidance"] if _optional(module) else None,
        distilled=bool(found.get("distilled")),
        network=network,
    )


def _denoiser(network: FlowNetwork, module: Any, diffusion: Diffusion, guidance: float) -> Denoiser:
    """Wrap the network; jitted, so that a program which calls it several times traces it once."""
    schedule, kind = diffusion
    optional, needed = _optional(module), tuple(network.parts(module, 0))

    def inputs(x_t: Array, t: Array, cond: Condition) -> tuple[Array, tuple]:
        check_condition(cond, needed, optional)
        t = jnp.broadcast_to(t, x_t.shape[:1]).astype(jnp.float32)
        time = _backwards(t) if network.backwards else t
        time = time * network.time_scale
        arguments = (x_t, time, *(cond[name] for name in needed))
        if optional:
            return t, (*arguments, cond.get("guidance", jnp.full_like(t, guidance)))
        return t, arguments

    def convert(raw: Array, x_t: Array, t: Array) -> Array:
        raw = -raw if network.backwards else raw
        return to_x0(kind, raw, x_t, schedule.alpha(t), schedule.sigma(t))

    @jax.jit
    def x0(params: Params, x_t: Array, t: Array, cond: Condition) -> Array:
        t, arguments = inputs(x_t, t, cond)
        return convert(module.apply(params, *arguments), x_t, t)

    @jax.jit
    def features(params: Params, x_t: Array, t: Array, cond: Condition) -> tuple[Array, ...]:
        return module.apply(params, *inputs(x_t, t, cond)[1], method="features")

    @jax.jit
    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: Condition
    ) -> tuple[Array, tuple[Array, ...]]:
        t, arguments = inputs(x_t, t, cond)
        raw, maps = module.apply(params, *arguments, method="call_with_features")
        return convert(raw, x_t, t), maps

    null_cond = null_conditions(needed, {}, optional=optional)
    return Denoiser(
        x0, features, x0_and_features, schedule, null_cond, gathers=True, guide=network.guide
    )


def _backwards(t: Array) -> Array:
    """Return (1000 - 1000 t) / 1000 with diffusers' four roundings, which the sinusoids see.

    Neither maximum changes a value, t being in 0..1; they keep compilers, which do not know that,
    from a fused 1000 - 1000 t of one rounding, and from 1 in place of / 1000 * 1000.
    """
    thousand = jnp.maximum(t, _THOUSAND)
    return (thousand - jnp.maximum(thousand * t, 0.0)) / thousand


def _optional(module: Any) -> tuple[str, ...]:
    return ("guidance",) if getattr(module, "guidance", False) else ()


def _own_side(config: Mapping[str, Any], network: FlowNetwork) -> int:
    side = square_side(config.get("sample_size", network.side))
    if type(side) is not int:
        raise Refused(
            f"the latents' side is {side!r}, expected one number; set sample_size in the "
            "transformer's config.json, for example to 128 for images of 1024 pixels."
        )
    return side


def _named_configs(network: FlowNetwork, pipeline: str) -> dict[str, Any]:
    """Return what `build` takes of the pipeline that `model.pipeline` names."""
    folder, name = path_of(pipeline).expanduser(), pipeline.removeprefix(_PREFIX)
    if name in network.configs and (name != pipeline or not folder.is_dir()):
        own, scheduler = network.configs[name]
        return {_NETWORK: own, _SCHEDULER: scheduler}
    if not pipeline or not folder.is_dir():
        raise Refused(
            f"model.pipeline={pipeline!r} is no folder, expected that of a diffusers pipeline, or "
            f"one of {sorted(network.configs)} for the published shapes; set "
            "`config.model.pipeline=`."
        )
    try:
        return _folder_configs(folder)
    except ValueError as error:
        raise Refused(f"{pipeline}: {error}") from error


def _folder_configs(folder: Path) -> dict[str, Any]:
    return transformer_configs(folder) | {"distilled": says_distilled(folder)}
