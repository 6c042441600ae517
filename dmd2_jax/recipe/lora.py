"""Players that share the teacher's weights and train low-rank adapters: `config.distill.lora_*`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter
from dmd2_jax.families.published.lora import to_lora_tensors
from dmd2_jax.networks.guidance_embedding import GUIDANCE, without_scale
from dmd2_jax.networks.lora import LoraConfig, lora_adapter, matching_targets, merge
from dmd2_jax.recipe.classes import DataRecord
from dmd2_jax.recipe.exported_weights import save_weights, whose_notes
from dmd2_jax.recipe.open import Family
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.folder import check_teacher
from dmd2_jax.runtime.distributed import to_host
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import write_safetensors

__all__ = [
    "check_same_lora",
    "export_student",
    "lora_config",
    "part_shapes",
    "player_adapters",
    "whole_part",
    "with_base",
]

_KEYS = ("lora_rank", "lora_alpha", "lora_targets", "lora_critic")


def lora_config(config: ConfigDict, family: Family) -> LoraConfig | None:
    """Take the adapters' settings from `config.distill`.

    Args:
      config: the whole config.
      family: the networks; without `lora_targets` in the config its own are taken, as far as
        the network has such layers.

    Returns:
      The settings, or None where whole networks are trained.

    Raises:
      ValueError: if they contradict each other, or a target matches no layer.
    """
    given = config.distill
    if not given.lora_rank:
        if given.lora_critic or given.lora_targets:
            raise Refused(
                f"config.distill.lora_critic={given.lora_critic} and lora_targets="
                f"{tuple(given.lora_targets)} with lora_rank=0 (whole networks), expected a rank; "
                "set config.distill.lora_rank=64, or leave the others away."
            )
        return None
    targets = tuple(given.lora_targets)
    if not targets:
        targets = matching_targets(family.param_shapes(), family.lora_targets, family.tensor_name)
    return LoraConfig(given.lora_rank, given.lora_alpha, targets)


def player_adapters(config: ConfigDict, family: Family) -> tuple[Adapter | None, Adapter | None]:
    """Return what generator and critic need to use the teacher's weights; None: their own ones.

    Raises:
      ValueError: see `lora_config`.
    """
    lora = lora_config(config, family)
    if lora is None:
        return None, None
    adapter = lora_adapter(lora, family.tensor_name)
    return adapter, adapter if config.distill.lora_critic else None


def with_base(adapter: Adapter | None, base: Params, own: Params) -> Params:
    """Return what the family's Denoiser takes of a player: its own parameters, and its base's."""
    return own if adapter is None else adapter.combine(base, own)


def part_shapes(adapter: Adapter | None, family: Family) -> Params:
    """Return the shapes of the parameters that a player has in the training state."""
    shapes = family.param_shapes()
    if adapter is None:
        return shapes
    return jax.eval_shape(lambda: adapter.init(jax.random.key(0), shapes))


def whole_part(
    own: Params, config: ConfigDict, family: Family, recorded: Mapping[str, str] | None
) -> Params:
    """Merge the adapters of a checkpoint with the weights of the config's teacher.

    Args:
      own: adapters.
      config: of their run.
      family: the networks.
      recorded: path and digest of the teacher's weights, from the checkpoint.

    Returns:
      Whole weights, NumPy arrays.

    Raises:
      ValueError: if the teacher cannot be read, or is not the one they were trained on.
    """
    file = teacher_file(config)
    base, lora = load_teacher(config, family), lora_config(config, family)
    assert lora is not None  # the caller has adapters
    check_teacher(recorded, {"path": str(file), "digest": params_digest(base)})
    return _merged(to_host(base), to_host(own), lora)


def _merged(base: Params, own: Params, lora: LoraConfig) -> Params:
    """Merge adapters, and keep what of a player's own is trained whole beside them."""
    beside = {key: value for key, value in own.items() if key == GUIDANCE}
    return {**merge(base, without_scale(own), lora), **beside}


def check_same_lora(ours: ConfigDict, theirs: Mapping[str, Any], place: str) -> None:
    """Refuse to begin with the weights of a run whose players have other adapters.

    Args:
      ours: the config.
      theirs: the other run's, from its config.json.
      place: what the other run is called.

    Raises:
      Refused: if they differ.
    """
    got, expected = (_settings(dict(it["distill"])) for it in (theirs, ours.to_dict()))
    if got != expected:
        raise Refused(
            f"config.distill.start_from={place} is a run with {got or 'whole networks'}, expected "
            f"{expected or 'whole networks'} as in the config; set the same lora_rank, lora_alpha, "
            "lora_targets and lora_critic."
        )


def _settings(distill: Mapping[str, Any]) -> dict[str, Any]:
    if not distill.get("lora_rank"):
        return {}
    values = {key: distill[key] for key in _KEYS}
    return values | {"lora_targets": tuple(values["lora_targets"])}


def export_student(
    config: ConfigDict,
    family: Family,
    base: Params,
    own: Params,
    file: Path,
    record: DataRecord | None = None,
    *,
    run: str | None = None,
    step: int = 0,
) -> None:
    """Write a student's weights, and its adapters beside them if it is nothing but these.

    Args:
      config: the whole config.
      family: the networks.
      base: the teacher's weights.
      own: the student's parameters in the training state.
      file: NAME.safetensors; the adapters go to NAME_lora.safetensors.
      record: of the data; None: not known.
      run: the identity of the run; None: not known.
      step: of the run.
    """
    lora, whose = lora_config(config, family), whose_notes(run, file, step)
    if lora is None:
        save_weights(family, own, file, record, whose)
        return
    save_weights(family, _merged(to_host(base), own, lora), file, record, whose)
    if GUIDANCE in own:  # which is no adapter: beside the base they would be another network
        return
    adapters = file.with_name(f"{file.stem}_lora.safetensors")
    tensors = to_lora_tensors(own, lora, family.tensor_name)
    write_safetensors(tensors, adapters, whose_notes(run, adapters, step))
