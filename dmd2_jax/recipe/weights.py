"""The weights that a training begins with: the teacher's, or those of another distillation."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Source
from dmd2_jax.denoiser import Adapter
from dmd2_jax.recipe.classes import check_same_names
from dmd2_jax.recipe.critic_steps import critic_shapes, same_steps
from dmd2_jax.recipe.guidance import guided_part_shapes, same_scales
from dmd2_jax.recipe.lora import check_same_lora, part_shapes, player_adapters
from dmd2_jax.recipe.open import Family
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.folder import check_teacher, read_run
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.runtime.distributed import to_host
from dmd2_jax.runtime.integrity import params_digest
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Params

__all__ = ["read_teacher", "starting_weights"]


def read_teacher(
    config: ConfigDict, family: Family, found: Path | None = None
) -> tuple[Params, dict[str, str]]:
    """Read the weights of a config's teacher, and say which they are.

    Args:
      config: the whole config.
      family: the networks.
      found: the file of its weights, where it has been found already.

    Returns:
      The weights, on the host: the devices shall hold them only where the mesh says. And their
      path and digest, as checkpoints record them.

    Raises:
      ValueError: if there are none, or they are not the family's.
    """
    file = found or teacher_file(config)
    weights = to_host(load_teacher(config, family, file))
    return weights, {"path": str(file.absolute()), "digest": params_digest(weights)}


def starting_weights(
    place: str,
    family: Family,
    config: ConfigDict | None = None,
    teacher: Mapping[str, str] | None = None,
    dataset: Source | None = None,
) -> tuple[Params, Params] | None:
    """Read what generator and critic of another distillation have learned, to go on from.

    Args:
      place: `config.distill.start_from`: a run folder, or RUN@CYCLE for one of its checkpoints;
        empty: the teacher's.
      family: the networks.
      config: of the run that begins; None: whole networks.
      teacher: path and digest of the weights that adapters share.
      dataset: of the run that begins; None: nothing is compared with it.

    Returns:
      Parameters of (generator, critic), or None for the teacher's.

    Raises:
      ValueError: if there is no such run, its networks are others, its adapters are of another
        rank or base, its critic knows other steps, its student takes a guidance scale that the
        new one does not, or its classes have other numbers.
      CheckpointError: if no checkpoint of it is good.
    """
    if not place:
        return None
    folder, at, cycle = place.rpartition("@")
    folder = folder if at and cycle.isdecimal() else place
    if folder != place and path_of(place).is_dir():
        if folder and path_of(folder).is_dir():
            raise Refused(
                f"config.distill.start_from={place} is a folder and cycle {cycle} of {folder}, "
                "expected one meaning; rename the folder."
            )
        folder = place
    command, values = read_run(folder)
    if command != "distill":
        raise Refused(
            f"config.distill.start_from={place} is a run of `{command}`, expected one of "
            f"`distill`; a teacher is given by config.teacher.weights."
        )
    adapters: tuple[Adapter | None, Adapter | None] = (None, None)
    if config is not None:
        check_same_lora(config, values, place)
        adapters = player_adapters(config, family)
    shapes, step = [part_shapes(it, family) for it in adapters], None
    theirs = values.get("distill", {})
    same_scales(theirs, config, place)
    shapes = [guided_part_shapes(each, theirs, family) for each in shapes]
    shapes[1] = critic_shapes(shapes[1], theirs, family)
    if folder != place:
        step = int(cycle)
    kept, identity = path_of(folder) / CHECKPOINTS, run_identity(folder)
    with Checkpoints(kept, read_only=True, run=identity) as checkpoints:
        generator, extra, step = checkpoints.restore_part("generator.params", shapes[0], step)
        if adapters[0] is not None and teacher is not None:
            check_teacher(extra.get("teacher"), teacher)
        if dataset is not None and family.num_classes:
            check_same_names(extra.get("data"), dataset, place, "or begin with another run")
        critic, _, step = checkpoints.restore_part("critic.params", shapes[1], step)
    critic = same_steps(critic, config, family, place)
    print(f"generator and critic begin with the weights of {folder}, cycle {step}.", flush=True)
    return generator, critic
