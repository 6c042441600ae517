"""The family of DiT and SiT: images or latents of classes.

| prediction            | time             | the network is told  | predicts  |
|-----------------------|------------------|----------------------|-----------|
| "flow"                | (0, 1], 1: noise | time_scale t         | eps - x_0 |
| "flow", data_time = 1 | likewise         | time_scale (1 - t)   | x_0 - eps |
| "eps"                 | 0..999, 0: data  | t                    | eps       |

The second row is that of the weights of SiT, with time_scale = 1.

A condition is the class number [b] int32; `num_classes`, one more than the last, is no class.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import refuse, unknown_faults, unsaid_faults
from dmd2_jax.config.sizes import sides
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.predictions import to_x0
from dmd2_jax.diffusion.schedules import discrete_vp, rectified_flow
from dmd2_jax.families.published.family import PublishedFamily
from dmd2_jax.families.published.folder import (
    read_component_tensors,
    transformer_configs,
    transformer_folder,
)
from dmd2_jax.families.published.model import PublishedClass, PublishedModel, class_of
from dmd2_jax.families.published.scheduler import Diffusion, read_scheduler
from dmd2_jax.families.sit.config import (
    CLASS_NAME,
    config_of,
    example_inputs,
    transformer_from_config,
)
from dmd2_jax.families.sit.original_names import from_original, holds_original_names, to_original
from dmd2_jax.families.sit.settings import defaults, faults
from dmd2_jax.families.sit.transformer import ClassTransformer
from dmd2_jax.networks.feature_blocks import chosen_blocks
from dmd2_jax.networks.published_config import square_side
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Array, Int, Params
from dmd2_jax.weights.weight_files import SUFFIXES, Weights, read_weights, strip_prefix

__all__ = ["READS", "SitFamily", "build", "read"]

READS = (CLASS_NAME,)
"""The classes of config.json that `read` opens."""

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_STEM = "diffusion_pytorch_model"
_IN_BLOCKS = ".norm1.emb."
_CLASSES = {CLASS_NAME: PublishedClass(transformer_from_config, example_inputs, _STEM)}


@dataclasses.dataclass(frozen=True)
class SitFamily(PublishedFamily):
    """A class-conditional transformer as a Denoiser, with what makes, reads and writes its weights.

    Its features are the tokens after some blocks, on their grid.

    Attributes:
      convention: what the network is told of the time, and predicts.
    """

    convention: str = ""

    @property
    def weights_note(self) -> str:
        """Say how another program has to read the weights that `save` writes."""
        if not self.model.module.shared:
            return "They are those of diffusers' DiTTransformer2DModel."
        return (
            f"They are those of DiT and SiT. {self.convention} diffusers' DiTTransformer2DModel "
            "cannot hold them, as each of its blocks has an embedding of the time with other "
            "sinusoids; its DiTPipeline has no class for SiT and no sampler of flows."
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that adapters are for, where the config does not say."""
        return ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")

    def cond(self, labels: Any) -> Int[Array, "..."] | None:
        """Turn class numbers, 0..num_classes-1, into conditions; None without classes."""
        return jnp.asarray(labels, jnp.int32) if self.num_classes else None

    def cond_shapes(self, *lead: int) -> jax.ShapeDtypeStruct | None:
        """Return conditions with these leading axes, with shapes in place of arrays."""
        return jax.ShapeDtypeStruct(lead, jnp.int32) if self.num_classes else None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors by the names that `save` writes."""
        shapes = self.model.tensor_shapes()
        if not self.model.module.shared:
            return shapes
        views = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
        return {name: view.shape for name, view in to_original(views).items()}

    def to_state_dict(self, params: Params) -> dict[str, np.ndarray]:
        """Turn weights into tensors: with the original names, or as they were read of diffusers."""
        tensors = self.model.to_tensors(params)
        return to_original(tensors) if self.model.module.shared else tensors

    def from_state_dict(self, tensors: Mapping[str, np.ndarray]) -> Params:
        """Turn tensors with the original names, or diffusers', into weights.

        Raises:
          ValueError: if the tensors are not exactly the network's; the message lists them.
        """
        original = holds_original_names(tensors)
        _check_embedding(tensors, original, self.model.module.shared)
        return self.model.from_tensors(from_original(tensors) if original else tensors)

    def from_weights(self, weights: Weights, prefix: str | None = None) -> Params:
        """Turn what a file of weights holds into weights.

        Args:
          weights: from `read_weights`.
          prefix: of the tensors to take, where the file holds several networks.

        Raises:
          ValueError: if they are of another network; the message lists the differences.
        """
        names = self.tensor_shapes()
        return self.from_state_dict(strip_prefix(weights.tensors, names, prefix))

    def load(self, path: str | os.PathLike) -> Params:
        """Read weights from a file, a transformer's folder or a pipeline's.

        Raises:
          ValueError: if they cannot be read or do not fit; the message names the path.
        """
        path = fetched(path)
        try:
            if not path.is_dir():
                return self.from_weights(read_weights(path))
            own, variant = transformer_folder(path), self.variant or None
            return self.from_state_dict(read_component_tensors(own, _STEM, variant))
        except ValueError as error:
            raise Refused(f"{path}: {error}") from error

    def save(
        self, params: Params, path: str | os.PathLike, notes: Mapping[str, str] | None = None
    ) -> None:
        """Write weights: to a file as its suffix says, else to a folder that diffusers loads.

        Raises:
          Refused: if it is a folder and all blocks share an embedding: diffusers' sinusoids are
            other ones.
        """
        if self.model.module.shared and path_of(path).suffix not in SUFFIXES:
            raise Refused(
                f"{path} is no name of a file of weights, expected one that ends in one of "
                f"{', '.join(SUFFIXES)}: diffusers' folders hold another embedding of the time."
            )
        super().save(params, path, notes)


def build(model_config: Mapping[str, Any]) -> SitFamily:
    """Build the family's members from a config.

    Args:
      model_config: keys of `config.model`; those that are missing have their defaults. Or
        `transformer` and `scheduler`, what the config files of a diffusers folder hold, instead of
        sizes and prediction, as of the folder that `pipeline` names; and `variant`, of the weights'
        files in a folder.

    Returns:
      The family.

    Raises:
      ValueError: if a key or a value is unknown, or asks for what is not built here.
    """
    parts = {
        k: model_config[k] for k in ("transformer", "scheduler", "variant") if k in model_config
    }
    given = {key: value for key, value in model_config.items() if key not in parts}
    config = defaults().to_dict() | given
    if place := str(config["pipeline"] or ""):
        _refuse_faults(config)
        parts |= _named_parts(place)
        config |= {"pipeline": ""}  # which has been read
    if "transformer" in parts:
        own = parts["transformer"]
        class_of(own, READS)
        config |= {"resolution": given.get("resolution") or square_side(own.get("sample_size", 32))}
        config |= {"patch": own.get("patch_size", 2), "prediction": "eps"}
    _refuse_faults(config)
    if "transformer" not in parts:
        refuse(list(unsaid_faults(config)), "config.model")
        own = config_of(config)
    model = PublishedModel.from_config(
        own, classes=_CLASSES, dtype=_DTYPES[config["dtype"]], remat=config["remat"]
    )
    blocks = chosen_blocks(tuple(config["feature_blocks"]), model.module.num_blocks)
    module = model.module.clone(scan_layers=config["scan_layers"], feature_blocks=blocks)
    diffusion = _diffusion(config, parts.get("scheduler"))
    if place:
        _check_data(place, given, module, square_side(own.get("sample_size", 32)))
    return SitFamily(
        _denoiser(module, diffusion, config),
        dataclasses.replace(model, module=module),
        (*sides(config["resolution"]), module.channels),
        diffusion,
        num_classes=module.num_classes,
        variant=parts.get("variant", ""),
        convention=_convention(diffusion.kind, config),
    )


def read(folder: str | os.PathLike, **options: Any) -> tuple[SitFamily, Params]:
    """Read the transformer of a DiTPipeline's folder, or of its own.

    Args:
      folder: with transformer/ and scheduler/, or with config.json; then the schedule is DDPM's.
      options: resolution, dtype, remat, variant and the family's other settings.

    Returns:
      (the family, the transformer's weights).

    Raises:
      ValueError: if a part is missing, damaged, or of a class that is not built here.
    """
    try:
        family = build(transformer_configs(path_of(folder)) | options)
    except ValueError as error:
        raise Refused(f"{folder}: {error}") from error
    return family, family.load(folder)


def _refuse_faults(config: Mapping[str, Any]) -> None:
    refuse(list(unknown_faults(config, defaults(), "sit")) or list(faults(config)), "config.model")


def _named_parts(place: str) -> dict[str, Any]:
    """Return what `build` takes of the folder that `model.pipeline` names."""
    folder = path_of(place).expanduser()
    if not folder.is_dir():
        raise Refused(
            f"model.pipeline={place!r} is no folder, expected that of diffusers' DiTPipeline or of "
            "its transformer; set `config.model.pipeline=`."
        )
    try:
        return transformer_configs(folder)
    except ValueError as error:
        raise Refused(f"{place}: {error}") from error


def _check_data(place: str, given: Mapping[str, Any], module: ClassTransformer, side: Any) -> None:
    """Refuse data of other sizes than the network of a folder is for."""
    own = {"resolution": side, "image_channels": module.channels, "num_classes": module.num_classes}
    for key, expected in own.items():
        if given.get(key) not in (None, expected):
            raise Refused(
                f"model.{key}={given[key]!r} with model.pipeline={place}, whose network is for "
                f"{expected}, expected the same; set config.model.{key}={expected}, or take other "
                "data."
            )


def _check_embedding(tensors: Collection[str], original: bool, shared: bool) -> None:
    """Refuse what no renaming makes the network's, before its tensors are listed one by one."""
    in_blocks = any(_IN_BLOCKS in name for name in tensors)
    if not (original or in_blocks) or in_blocks != shared:
        return
    kinds = (
        "one embedding of the time for all blocks, as in the original files of DiT and SiT",
        "an embedding of the time in each block, as in diffusers' DiTTransformer2DModel",
    )
    remedies = (
        "take diffusers' own folder.",
        "take the original file, such as DiT-XL-2-256x256.pt, or give the folder as "
        "config.model.pipeline.",
    )
    raise Refused(
        f"got weights with {kinds[in_blocks]}, expected {kinds[not in_blocks]}, and neither is "
        f"made of the other, as their sinusoids differ; {remedies[in_blocks]}"
    )


def _diffusion(config: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> Diffusion:
    if scheduler is not None:
        return read_scheduler(scheduler, may_clip=True)
    levels = config["num_levels"]
    if config["prediction"] == "flow":
        return Diffusion(rectified_flow(shift=config["shift"], num_levels=levels), "flow")
    schedule = discrete_vp(betas="linear", beta_start=1e-4, beta_end=0.02, num_levels=levels)
    return Diffusion(schedule, "eps")


def _convention(kind: str, config: Mapping[str, Any]) -> str:
    """Put a row of the module's table into words."""
    if kind != "flow":
        return "The network is told t and predicts eps."
    scale = f"{config['time_scale']:g}"
    if config["data_time"] == 1:
        return f"The network is told {scale} (1 - t) and predicts x_0 - eps."
    return f"The network is told {scale} t and predicts eps - x_0."


def _denoiser(
    module: ClassTransformer, diffusion: Diffusion, config: Mapping[str, Any]
) -> Denoiser:
    """Wrap the network; jitted, so that a program which calls it several times traces it once."""
    schedule, kind = diffusion
    is_flow = kind == "flow"
    backwards = is_flow and config["data_time"] == 1
    scale = config["time_scale"] if is_flow else 1.0

    def inputs(x_t: Array, t: Array, cond: Array | None) -> tuple[Array, tuple]:
        if (cond is None) != (module.num_classes == 0):
            raise Refused(
                f"cond is {'None' if cond is None else 'given'}, expected "
                + ("class numbers [b]" if module.num_classes else "None: there are no classes")
                + "; take them from `Family.cond`."
            )
        t = jnp.broadcast_to(t, x_t.shape[:1])
        time = t.astype(jnp.float32)
        return t, (x_t, scale * (1.0 - time if backwards else time), cond)

    def convert(raw: Array, x_t: Array, t: Array) -> Array:
        raw = -raw if backwards else raw
        return to_x0(kind, raw, x_t, schedule.alpha(t), schedule.sigma(t))

    @jax.jit
    def x0(params: Params, x_t: Array, t: Array, cond: Array | None) -> Array:
        t, arguments = inputs(x_t, t, cond)
        return convert(module.apply(params, *arguments), x_t, t)

    @jax.jit
    def features(params: Params, x_t: Array, t: Array, cond: Array | None) -> tuple[Array, ...]:
        return module.apply(params, *inputs(x_t, t, cond)[1], method="features")

    @jax.jit
    def x0_and_features(
        params: Params, x_t: Array, t: Array, cond: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        t, arguments = inputs(x_t, t, cond)
        raw, maps = module.apply(params, *arguments, method="call_with_features")
        return convert(raw, x_t, t), maps

    def null_cond(cond: Array | None) -> Array | None:
        return None if cond is None else jnp.full_like(cond, module.num_classes)

    return Denoiser(x0, features, x0_and_features, schedule, null_cond, gathers=True)
