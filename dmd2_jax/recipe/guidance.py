"""A student that takes the guidance scale as an input: `config.distill.guidance_range`.

A network that has such an input (FLUX.1-dev) keeps it, in its condition. Every other one is given
an embedding of the scale (networks/guidance_embedding.py), whose weights are trained with its own
and written into the same file, by the name that diffusers has for them: cond_proj.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import OTHER_SCALES, UNCONDITIONAL
from dmd2_jax.denoiser import Adapter, Denoiser
from dmd2_jax.diffusion.guidance import guided_by_cond, told_scale
from dmd2_jax.families.published.pipeline import says_distilled
from dmd2_jax.networks.guidance_embedding import (
    GUIDANCE,
    at_scale,
    folded,
    scale_kernels,
    without_scale,
)
from dmd2_jax.recipe.open import Family
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Array, Params, PyTree
from dmd2_jax.weights.hub import is_hub_path
from dmd2_jax.weights.weight_files import read_weights, write_weights

__all__ = [
    "baked",
    "check_guided_once",
    "check_objectives_guidance",
    "check_teacher_scale",
    "chosen_scale",
    "drawn_scales",
    "given_scale",
    "guided_part_shapes",
    "guided_teacher",
    "has_scale_input",
    "in_range",
    "input_scale",
    "load_student",
    "same_scales",
    "save_student",
    "scale_range",
    "told_adapter",
    "told_input",
    "told_network",
]

_PART = "cond_proj.weight"
_DRAWN = 4


def scale_range(distill: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the range of a student's guidance scales; None: it takes none.

    Args:
      distill: `config.distill` of a run, also of an older release.
    """
    ends = tuple(distill.get("guidance_range", ()))
    return (float(ends[0]), float(ends[1])) if ends else None


def chosen_scale(distill: Mapping[str, Any], asked: float | None = None) -> float | None:
    """Return the scale that a student is sampled at: the one asked for, or the range's middle.

    Args:
      distill: `config.distill` of its run.
      asked: by the user; None: nobody says.

    Returns:
      The scale; None: the student takes none.

    Raises:
      Refused: if it is out of the range, or the student takes none.
    """
    ends = scale_range(distill)
    if ends is not None:
        return in_range(ends, asked)
    if asked is not None:
        raise Refused(
            f"guidance={asked:g} of a student that takes no guidance scale, expected none: its "
            "teacher's is in its weights; leave it away, sample the teacher, or distil with "
            "config.distill.guidance_range=1,4 a student that takes one."
        )
    return None


def check_teacher_scale(asked: float | None) -> None:
    """Refuse what is no scale of a teacher's guidance; None is none.

    Raises:
      Refused: if it is negative or not finite; or 0, which elsewhere is no guidance and here the
        teacher without its condition.
    """
    if asked is not None and not 0 <= asked < math.inf:
        raise Refused(f"guidance={asked}, expected 1 (no guidance) or more; try 2.")
    if asked == 0:
        raise Refused(
            f"guidance=0, {UNCONDITIONAL}, expected 1 for no guidance, or a scale above it; "
            f"{OTHER_SCALES}."
        )


def in_range(ends: tuple[float, float], asked: float | None = None) -> float:
    """Return the scale that is asked for, or the middle of a student's range.

    Args:
      ends: the range.
      asked: by the user; None: nobody says.

    Raises:
      Refused: if it is out of the range.
    """
    if asked is None:
        return sum(ends) / 2
    if not ends[0] <= asked <= ends[1]:
        raise Refused(
            f"guidance={asked:g}, expected a scale in {ends[0]:g}..{ends[1]:g}, the "
            "config.distill.guidance_range that the student was trained with; choose one there."
        )
    return asked


def drawn_scales(distill: Mapping[str, Any], rows: int) -> tuple[float, ...]:
    """Return the scales of a picture of samples, from end to end of the range; (): it has none.

    Args:
      distill: `config.distill` of a run.
      rows: of the picture, of which each scale has one at least.
    """
    ends = scale_range(distill)
    return () if ends is None else tuple(np.linspace(*ends, min(rows, _DRAWN)).tolist())


def input_scale(family: Family) -> float | None:
    """Return the scale that a published network is told by default; None: it takes none itself."""
    return getattr(family, "input_guidance", None)


def has_scale_input(family: Family) -> bool:
    """Return whether the published network takes a guidance scale itself."""
    return input_scale(family) is not None


def check_objectives_guidance(
    config: ConfigDict, family: Family, objectives: Iterable[Any]
) -> None:
    """Refuse a teacher's guidance by any objective where the teacher is guided already.

    Args:
      config: the whole config.
      family: the networks.
      objectives: that train the student; the guidance of one is its attribute.

    Raises:
      Refused: see `check_guided_once`.
    """
    weights = config.teacher.weights
    place = None if not weights or is_hub_path(weights) else path_of(weights).expanduser()
    distilled = place is not None and says_distilled(place)
    check_guided_once(family, config.distill.guidance, "config.distill.guidance", distilled)
    for one in objectives:
        said = f"guidance of config.distill.objectives' {getattr(one, 'name', one)!r}"
        check_guided_once(family, getattr(one, "guidance", None), said, distilled)


def check_guided_once(
    family: Family, asked: float | None, said: str, distilled: bool = False
) -> None:
    """Refuse w of u + w (c - u) where a network's guidance is in its weights, or is told it.

    Args:
      family: the network.
      asked: w; None and 1 are none.
      said: what the user calls it.
      distilled: whether its weights are of a pipeline that says so, whatever the family's says.
    """
    if asked in (None, 1):
        return
    if has_scale_input(family):
        raise Refused(
            f"{said}={asked:g} of a network that takes its guidance scale as an input, expected "
            "None: u + w (c - u) would guide what is guided; leave it away, and say the scale by "
            "config.model.guidance where the family has that."
        )
    if distilled or getattr(family, "distilled", False):
        raise Refused(
            f"{said}={asked:g} of a pipeline whose model_index.json says is_distilled, expected "
            "None or 1: guidance is in the network's weights, and diffusers takes no notice of "
            "more; leave it away, or use the base model that it was made from."
        )


def guided_teacher(config: ConfigDict, family: Family) -> Denoiser:
    """Return the teacher: with a range its conditions are `Guided`.

    Raises:
      Refused: if the teacher cannot be guided.
    """
    if scale_range(config.distill) is None:
        return family.denoiser
    if has_scale_input(family):
        return told_network(config, family)
    if family.cond_shapes(1) is None:
        raise Refused(
            f"config.distill.guidance_range={tuple(config.distill.guidance_range)} with an "
            "unconditional model, expected one with classes or prompts, which guidance goes "
            "towards; set it to ()."
        )
    return guided_by_cond(family.denoiser)


def told_network(config: ConfigDict, family: Family) -> Denoiser:
    """Return the network of student and critic: with a range its conditions are `Guided`.

    Raises:
      Refused: if the family does not say where the noise level is embedded.
    """
    if scale_range(config.distill) is None:
        return family.denoiser
    if not has_scale_input(family):
        _layer(family)
    return told_scale(family.denoiser, _tell_input if has_scale_input(family) else _tell)


def _tell_input(params: Params, cond: PyTree, scale: Array) -> tuple[Params, PyTree]:
    """Tell a network the scale that takes it in its condition."""
    return params, {**cond, "guidance": scale}


def told_input(family: Family) -> Denoiser:
    """Return a network that takes a guidance scale itself, whose conditions are `Guided`."""
    return told_scale(family.denoiser, _tell_input)


def _tell(params: Params, cond: PyTree, scale: Array) -> tuple[Params, PyTree]:
    return at_scale(params, scale), cond


def told_adapter(adapter: Adapter | None) -> Adapter | None:
    """Return an adapter whose player has an embedding of the scale beside it, trained whole."""
    if adapter is None:
        return None

    def combine(base: Params, own: Params) -> Params:
        kernels = {key: value for key, value in own.items() if key == GUIDANCE}
        return {**adapter.combine(base, without_scale(own)), **kernels}

    return adapter._replace(combine=combine)


def given_scale(params: Params, family: Family) -> Params:
    """Return a player's parameters with an embedding of the scale, where they need one.

    Args:
      params: whole weights or adapters.
      family: the networks.
    """
    if GUIDANCE in params or has_scale_input(family):
        return params
    return {**params, GUIDANCE: scale_kernels(family.param_shapes(), _layer(family))}


def guided_part_shapes(shapes: Params, distill: Mapping[str, Any], family: Family) -> Params:
    """Return the shapes of a player's parameters in the state of a run.

    Args:
      shapes: without an embedding of the scale.
      distill: `config.distill` of the run, also of an older release.
      family: the networks.
    """
    if scale_range(distill) is None:
        return shapes
    return jax.eval_shape(lambda shapes: given_scale(shapes, family), shapes)


def same_scales(distill: Mapping[str, Any], config: ConfigDict | None, place: str) -> None:
    """Refuse to begin with a run whose student takes a guidance scale where the new one does not.

    Args:
      distill: `config.distill` of the other run.
      config: of the run that begins; None: its student takes none.
      place: what the other run is called.
    """
    theirs = scale_range(distill)
    if theirs is not None and (config is None or scale_range(config.distill) is None):
        low, high = theirs
        raise Refused(
            f"config.distill.start_from={place} is a run with guidance_range=({low:g}, {high:g}), "
            "expected a student that takes no guidance scale as in the config; set "
            f"config.distill.guidance_range={low:g},{high:g}."
        )


def baked(params: Params, family: Family, scale: float | None) -> Params:
    """Return plain weights of a student at one scale.

    Args:
      params: whole weights.
      family: the networks.
      scale: the scale; None: the student takes none.
    """
    return params if scale is None or has_scale_input(family) else folded(params, scale)


def save_student(
    family: Family, params: Params, path: Path, notes: Mapping[str, str] | None = None
) -> None:
    """Write the weights of a student that has an embedding of the scale, into one file."""
    own = {
        name: np.ascontiguousarray(np.asarray(params[GUIDANCE][layer], np.float32).T)
        for name, layer in _tensor_names(family).items()
    }
    plain: Any = family  # whose layer was found, so that it is one that names its tensors
    write_weights(plain.to_state_dict(without_scale(params)) | own, path, notes)


def load_student(family: Family, path: Path) -> Params:
    """Read the weights of a student that has an embedding of the scale.

    Raises:
      Refused: if the file has none, or is of another network.
    """
    if has_scale_input(family):
        return family.load(path)
    weights, names = read_weights(fetched(path)), _tensor_names(family)
    if missing := [name for name in names if name not in weights.tensors]:
        raise Refused(
            f"{path} lacks {missing}, expected the weights of a student that was trained with "
            "config.distill.guidance_range; choose the run's own."
        )
    tensors = dict(weights.tensors)
    shapes = scale_kernels(family.param_shapes(), _layer(family))
    kernels = {layer: np.asarray(tensors.pop(name)).T for name, layer in names.items()}
    for layer, kernel in kernels.items():
        if kernel.shape != shapes[layer].shape:
            raise Refused(
                f"{path}: the embedding of the guidance scale is {kernel.shape}, expected "
                f"{shapes[layer].shape}; choose the run's own weights."
            )
    try:
        rest = family.from_weights(dataclasses.replace(weights, tensors=tensors))
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error
    return {**rest, GUIDANCE: {layer: jnp.asarray(it) for layer, it in kernels.items()}}


def _tensor_names(family: Family) -> dict[str, str]:
    """Return the names of the embedding's tensors in a file -> its layers."""
    layers = scale_kernels(family.param_shapes(), _layer(family))
    paths = {layer: ("params", *layer.split("/"), "kernel") for layer in layers}
    names = {layer: family.tensor_name(path).split(".")[:-2] for layer, path in paths.items()}
    return {".".join([*owner, _PART]): layer for layer, owner in names.items()}


def _layer(family: Family) -> str:
    layer = getattr(family, "guidance_layer", "")  # a family of the user's own may have none
    if not layer or not hasattr(family, "to_state_dict"):
        raise Refused(
            f"config.distill.guidance_range with a family {type(family).__name__} that lacks "
            "guidance_layer or to_state_dict, expected the name of the first layer that embeds "
            "the noise level, and what names the tensors; add them to the family."
        )
    return layer
