"""A distillation's settings, players and first state, as a config describes them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Adapter
from dmd2_jax.distill import DistillConfig, Players, TrainState, init_state
from dmd2_jax.networks.gan_head import GanHead, discriminator
from dmd2_jax.recipe.lora import check_same_lora, part_shapes, player_adapters
from dmd2_jax.recipe.open import Family
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.folder import check_teacher, read_run
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.runtime.offload import on_host
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Key, Params

__all__ = [
    "build_players",
    "distill_config",
    "initial_state",
    "starting_weights",
    "state_shapes",
]


def distill_config(config: ConfigDict, family: Family) -> DistillConfig:
    """Take the algorithm's settings from `config.distill` and `config.optim`, by name.

    Raises:
      ValueError: if the values contradict each other.
    """
    given = config.distill.to_dict() | config.optim.to_dict()
    names = {field.name for field in dataclasses.fields(DistillConfig)}
    values = {name: value for name, value in given.items() if name in names}
    values |= {
        "sample_shape": tuple(family.image_shape),
        "student_times": tuple(float(t) for t in config.distill.student_times),
        "total_turns": config.distill.cycles * config.distill.critic_turns,
    }
    if "sigma_data" in config.model:
        values["sigma_data"] = config.model.sigma_data
    return DistillConfig(**values)


def build_players(config: ConfigDict, family: Family) -> Players:
    """Make the players: three times the family's denoiser, and the GAN head if there is a GAN.

    Raises:
      ValueError: if the config's low-rank adapters are refused.
    """
    head = None
    if config.distill.gan_critic_weight is not None:
        head = discriminator(GanHead(hidden=config.distill.gan_head_channels))
    denoiser = family.denoiser
    return Players(denoiser, denoiser, denoiser, head, *player_adapters(config, family))


def initial_state(
    players: Players,
    settings: DistillConfig,
    family: Family,
    teacher_params: Params,
    key: Key,
    start: tuple[Params, Params] | None = None,
    places: TrainState | None = None,
) -> TrainState:
    """Make the state of cycle 0: generator and critic are copies of the teacher, or adapters of it.

    With `places` no device holds more of it than its part, if the teacher's weights are split.

    Args:
      players: from `build_players`.
      settings: from `distill_config`.
      family: the networks.
      teacher_params: the teacher's weights.
      key: of the GAN head's weights, and of adapters.
      start: parameters of generator and critic to begin with instead.
      places: where it belongs, a state of Shardings; see `init_state`.
    """

    def own(name: str, adapter: Adapter | None) -> Params:
        return adapter.init(stream_key(key, name), teacher_params) if adapter else teacher_params

    head = None
    with on_host() if places is not None else contextlib.nullcontext():
        if players.discriminator is not None:
            head = players.discriminator.init(key, family.feature_shapes(1))
        generator, critic = start or (
            own("generator", players.generator_adapter),
            own("critic", players.critic_adapter),
        )
    return init_state(
        settings, generator=generator, critic=critic, discriminator=head, places=places
    )


def state_shapes(config: ConfigDict, family: Family) -> TrainState:
    """Return the shapes of a distillation's state, without its weights.

    Raises:
      ValueError: if the config is refused.
    """
    settings, players = distill_config(config, family), build_players(config, family)
    key = jax.eval_shape(lambda: jax.random.key(0))
    make = functools.partial(initial_state, players, settings, family)
    return jax.eval_shape(make, family.param_shapes(), key)


def starting_weights(
    place: str,
    family: Family,
    config: ConfigDict | None = None,
    teacher: Mapping[str, str] | None = None,
) -> tuple[Params, Params] | None:
    """Read what generator and critic of another distillation have learned, to go on from.

    Args:
      place: `config.distill.start_from`: a run folder, or RUN@CYCLE for one of its checkpoints;
        empty: the teacher's.
      family: the networks.
      config: of the run that begins; None: whole networks.
      teacher: path and digest of the weights that adapters share.

    Returns:
      Parameters of (generator, critic), or None for the teacher's.

    Raises:
      ValueError: if there is no such run, its networks are others, or its adapters are of another
        rank or base.
      CheckpointError: if no checkpoint of it is good.
    """
    if not place:
        return None
    folder, at, cycle = place.rpartition("@")
    folder = folder if at and cycle.isdecimal() else place
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
    if folder != place:
        step = int(cycle)
    with Checkpoints(Path(folder) / CHECKPOINTS, read_only=True) as checkpoints:
        generator, extra, step = checkpoints.restore_part("generator.params", shapes[0], step)
        if adapters[0] is not None and teacher is not None:
            check_teacher(extra.get("teacher"), teacher)
        critic, _, step = checkpoints.restore_part("critic.params", shapes[1], step)
    print(f"generator and critic begin with the weights of {folder}, cycle {step}.", flush=True)
    return generator, critic
