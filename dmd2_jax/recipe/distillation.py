"""The set-up of a distillation, from its config: players, state, batch, placement, program."""

import contextlib
import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax.config.sizes import sides, sizes_of
from dmd2_jax.denoiser import Adapter
from dmd2_jax.distill import (
    CycleBatch,
    CycleShardings,
    DistillConfig,
    Objective,
    Pairs,
    Players,
    Samples,
    TrainState,
    dmd2,
    init_state,
    make_cycle,
)
from dmd2_jax.distill.objectives import Reward
from dmd2_jax.networks.gan_head import GanHead, discriminator, head_of_any_shape
from dmd2_jax.recipe.critic_steps import critic_step, given_steps
from dmd2_jax.recipe.guidance import (
    check_objectives_guidance,
    given_scale,
    guided_teacher,
    scale_range,
    told_adapter,
    told_network,
)
from dmd2_jax.recipe.lora import player_adapters
from dmd2_jax.recipe.open import Family, student_times
from dmd2_jax.recipe.placement import (
    check_player_rules,
    cycle_shardings,
    mesh_rules,
    spread_players,
)
from dmd2_jax.runtime.offload import on_host
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.runtime.sharding import Rules, check_batch_size
from dmd2_jax.typing import Key, Params, PyTree

__all__ = [
    "Distillation",
    "batch_shapes",
    "build_players",
    "distill_config",
    "initial_state",
    "objectives",
    "open_distillation",
    "placed",
    "state_shapes",
    "trace",
]


class Distillation(NamedTuple):
    """A distillation that is checked; nothing of it is read, compiled or written yet.

    Attributes:
      settings: the algorithm's.
      players: the networks.
      teacher: the shapes of the teacher's weights.
      state: the shapes of the training state.
      batch: the shapes of what a cycle reads.
      rules: where parameters lie, where `config.mesh.rules` says so.
      mesh: the devices.
      shardings: where teacher, state and batch lie on the mesh.
      cycle: the program, jitted: (state, teacher's weights, batch, key) -> (state, metrics).
    """

    settings: DistillConfig
    players: Players
    teacher: Params
    state: TrainState
    batch: CycleBatch
    rules: Rules
    mesh: Mesh
    shardings: CycleShardings
    cycle: Any


def open_distillation(config: ConfigDict, family: Family, mesh: Mesh) -> Distillation:
    """Check a distillation as far as neither data nor weights are needed, and make its program.

    Whoever trains, plans, times or checks a recipe takes this one set-up, so that all speak of the
    same program.

    Args:
      config: a checked config.
      family: the networks.
      mesh: from `make_mesh`; its devices need not be there.

    Returns:
      The distillation.

    Raises:
      ValueError: if the settings contradict each other, the batch does not split over the mesh, or
        a placement is refused.
    """
    rules, settings = mesh_rules(config.mesh), distill_config(config, family)
    players = build_players(config, family)
    _try_rewards(settings, family)
    check_batch_size(settings.batch_size, mesh, settings.microbatches)
    teacher = family.param_shapes()
    state = _shapes(players, settings, family)
    check_player_rules(rules, teacher, state, mesh)
    batch = batch_shapes(settings, family)
    shardings = cycle_shardings(state, teacher, batch, mesh, rules, config.mesh.offload)
    cycle = make_cycle(spread_players(players, mesh, rules), settings, shardings=shardings)
    return Distillation(settings, players, teacher, state, batch, rules, mesh, shardings, cycle)


def _try_rewards(settings: DistillConfig, family: Family) -> None:
    """Refuse a reward that is not finite, before anything long is compiled."""
    for one in settings.objectives:
        if isinstance(one, Reward):
            x_0 = jax.random.normal(jax.random.key(0), (2, *settings.sample_shape))
            shapes = family.cond_shapes(2)
            one.try_out(x_0, jax.tree.map(lambda it: jnp.zeros(it.shape, it.dtype), shapes))


def trace(it: Distillation) -> Any:
    """Trace the program of a distillation, which compiles nothing and needs no arrays.

    Args:
      it: the distillation.

    Returns:
      What `jax.jit`'s `trace` returns: it has the `jaxpr`, and can be lowered.

    Raises:
      TypeError, ValueError: if the parts do not fit each other.
    """
    state, teacher = placed(it.state, it.shardings.state), placed(it.teacher, it.shardings.teacher)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return it.cycle.trace(state, teacher, it.batch, key)


def placed(shapes: PyTree, places: PyTree) -> PyTree:
    """Return shapes whose types say where they lie, and in which memory.

    Args:
      shapes: arrays or their shapes.
      places: their Shardings.
    """
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )


def batch_shapes(settings: DistillConfig, family: Family) -> CycleBatch:
    """Return the shapes of what a cycle reads, without any data.

    Args:
      settings: from `distill_config`.
      family: the networks.
    """
    turns, b = settings.critic_turns, settings.batch_size

    def images(*lead: int) -> Any:
        return jax.ShapeDtypeStruct((*lead, *family.image_shape), jnp.float32)

    real = pairs = None
    if settings.needs_real:
        real = Samples(images(turns, b), family.cond_shapes(turns, b))
    if settings.needs_pairs:
        pairs = Pairs(images(b), images(b), family.cond_shapes(b))
    return CycleBatch(real, family.cond_shapes(turns, b), pairs)


def distill_config(config: ConfigDict, family: Family) -> DistillConfig:
    """Take the algorithm's settings from `config.distill` and `config.optim`, by name.

    Raises:
      ValueError: if the values contradict each other.
    """
    given = config.distill.to_dict() | config.optim.to_dict()
    names = {field.name for field in dataclasses.fields(DistillConfig)}
    values = {name: value for name, value in given.items() if name in names}
    values |= {
        "objectives": objectives(config),
        "sample_shape": tuple(family.image_shape),
        "student_times": tuple(float(t) for t in student_times(config, family.denoiser.schedule)),
        "guidance_range": scale_range(config.distill) or (),
        "total_turns": config.distill.cycles * config.distill.critic_turns,
    }
    return DistillConfig(**values)


def objectives(config: ConfigDict) -> tuple[Objective, ...]:
    """Make the objectives that `config.distill` describes.

    Raises:
      ValueError: if the values contradict each other, or an objective of the user's own is none.
    """
    given = config.distill.to_dict()
    if "sigma_data" in config.model:  # of an EDM-like family, for the weight of its name
        given["sigma_data"] = config.model.sigma_data
    return dmd2(**{key: given[key] for key in inspect.signature(dmd2).parameters if key in given})


def build_players(config: ConfigDict, family: Family) -> Players:
    """Make the players: three times the family's denoiser, and the GAN head if there is a GAN.

    Raises:
      ValueError: if the config's low-rank adapters, a critic that is told the step, or a student
        that is told the guidance scale, are refused.
    """
    head, minimised = None, objectives(config)
    check_objectives_guidance(config, family, minimised)
    if any(one.needs_discriminator for one in minimised):
        head = discriminator(_gan_head(config, family))
    told = told_network(config, family)
    generator, critic = player_adapters(config, family)
    return Players(
        guided_teacher(config, family),
        told,
        told,
        head,
        told_adapter(generator),
        told_adapter(critic),
        critic_step(config, family),
    )


def _gan_head(config: ConfigDict, family: Family) -> GanHead:
    """Return a head for the family's features; of several shapes one that takes them all."""
    hidden, sizes = config.distill.gan_head_channels, sizes_of(config.model.resolution)
    if len(sizes) == 1:
        return GanHead(hidden=hidden)
    smallest = min(
        side * maps.shape[1] // family.image_shape[0]
        for size in sizes
        for side in sides(size)
        for maps in family.feature_shapes(1)
    )
    return head_of_any_shape(smallest, hidden)


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
        if settings.guidance_range:
            generator, critic = given_scale(generator, family), given_scale(critic, family)
        if players.critic_step is not None:
            critic = given_steps(critic, family, len(settings.student_times))
    return init_state(
        settings, generator=generator, critic=critic, discriminator=head, places=places
    )


def state_shapes(config: ConfigDict, family: Family) -> TrainState:
    """Return the shapes of a distillation's state, without its weights.

    Raises:
      ValueError: if the config is refused.
    """
    return _shapes(build_players(config, family), distill_config(config, family), family)


def _shapes(players: Players, settings: DistillConfig, family: Family) -> TrainState:
    key = jax.eval_shape(lambda: jax.random.key(0))
    make = functools.partial(initial_state, players, settings, family)
    return jax.eval_shape(make, family.param_shapes(), key)
