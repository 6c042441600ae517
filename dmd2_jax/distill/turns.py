"""The two turns of the game: one update of the generator, one of critic and discriminator."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill.accumulate import accumulated_grad
from dmd2_jax.distill.config import DistillConfig, Players
from dmd2_jax.distill.draws import RolloutDraws
from dmd2_jax.distill.health import sample_statistics
from dmd2_jax.distill.objectives.contract import Objective, merged_draws
from dmd2_jax.distill.objectives.view import Network, Pairs, Samples, View
from dmd2_jax.distill.rollout import backward_simulation, prior_sample
from dmd2_jax.distill.state import (
    Optimizers,
    Player,
    TrainState,
    learning_rate_factor,
    update_ema,
    update_players,
)
from dmd2_jax.typing import Array, Float, Int, Params, PyTree, Shaped

Metrics = dict[str, Any]


def student_input(
    generator: Denoiser,
    params: Params,
    draws: RolloutDraws,
    cond: PyTree,
    real: Array | None,
    config: DistillConfig,
) -> tuple[Float[Array, "b ..."], Shaped[Array, " b"]]:
    """Make the x_t that the student is trained on, and its t; no gradient flows into it.

    Args:
      generator: the student.
      params: its parameters.
      draws: noise for each step and the step drawn for this batch.
      cond: condition of the batch.
      real: [b, ...] real samples; used only when config.backward_simulation is False and the
        student has several steps.
      config: the settings.

    Returns:
      x_t [b, ...] and t [b].
    """
    times = config.student_times
    grid = jnp.asarray(times, generator.schedule.levels.dtype)
    t = jnp.full((draws.noise.shape[1],), grid[draws.step])
    if config.backward_simulation or len(times) == 1:
        return (
            backward_simulation(generator, params, draws.noise, draws.step, cond, times=times),
            t,
        )
    # Noised real data; the first step starts from pure noise all the same.
    assert real is not None  # `DistillConfig.needs_real` says so
    noise = draws.noise[draws.step]
    from_real = add_noise(generator.schedule, real, noise, t)
    return jnp.where(draws.step == 0, prior_sample(generator, noise, times), from_real), t


def student_samples(
    players: Players,
    params: Params,
    draws: RolloutDraws,
    cond: PyTree,
    real: Array | None,
    config: DistillConfig,
) -> Float[Array, "b ..."]:
    """Return the student's x_0 for drawn inputs; the gradient reaches the last call only."""
    x_t, t = student_input(players.generator, params, draws, cond, real, config)
    return players.generator.x0(params, x_t, t, cond)


def generator_turn(
    state: TrainState,
    teacher_params: Params,
    cond: PyTree,
    rollout: RolloutDraws,
    draws: Mapping[str, PyTree],
    *,
    players: Players,
    config: DistillConfig,
    real: Samples | None = None,
    pairs: Pairs | None = None,
    optimizers: Optimizers = Optimizers(),  # noqa: B008, a constant
) -> tuple[TrainState, Float[Array, "b ..."], Metrics]:
    """Update the generator once.

        loss = sum of weight * value over the generator's objectives, by default
               dm_weight L_DM + gan_generator_weight softplus(-D)

    Args:
      state: the state; only `generator`, `ema` and `step` change.
      teacher_params: the frozen teacher's parameters.
      cond: conditions of the student's batch, leading axis b.
      rollout: what the student's samples are made from.
      draws: what the objectives draw, by name.
      players: the networks, without adapters (`Players.on_base`).
      config: the settings.
      real: real samples, for students trained on noised data and objectives that need them.
      pairs: teacher ODE pairs, for objectives that need them.
      optimizers: those of `init_state`.

    Returns:
      The new state, the student's samples made BEFORE the update ([b, ...]), and metrics.

    Source: DMD2 (arXiv 2405.14867) section 4, algorithm as in the official training script.
    """

    def loss_fn(params: Params, part: tuple) -> tuple[Array, tuple[Array, Metrics]]:
        noise, cond, draws, real, pairs = part
        inputs = RolloutDraws(jnp.moveaxis(noise, 0, 1), rollout.step)
        images = None if real is None else real.x_0
        x_0 = student_samples(players, params, inputs, cond, images, config)
        view = _view(
            "generator",
            config,
            Samples(x_0, cond),
            rollout.step,
            draws,
            given_real=real,
            given_pairs=pairs,
            teacher=Network(players.teacher, teacher_params),
            generator=Network(players.generator, params),
            critic=_critic(players, state.critic.params, rollout.step),
            head=_head(players, state.discriminator and state.discriminator.params),
        )
        loss, metrics = _weighed(config.of_player("generator"), view)
        return loss, (x_0, metrics | {"generator_loss": loss})

    whole = (jnp.moveaxis(rollout.noise, 1, 0), cond, draws, real, pairs)
    gradient, x_0, metrics = accumulated_grad(
        loss_fn, state.generator.params, whole, config.microbatches
    )
    lr = learning_rate_factor(config, state.step.critic)
    if optimizers.generator is None:
        lr = config.generator_lr * lr
    (generator,), norm, taken = update_players(
        (state.generator,), (gradient,), lr, config, optimizers.generator
    )
    ema = update_ema(state.ema, generator.params, state.step.generator, config)
    step = state.step._replace(
        generator=state.step.generator + 1,
        skipped=state.step.skipped + ~taken,
        generator_in_a_row=jnp.where(taken, 0, state.step.generator_in_a_row + 1),
    )
    metrics |= {"generator_grad_norm": norm, _rate("generator", optimizers.generator): lr}
    metrics |= sample_statistics("generated", x_0)
    return state._replace(step=step, generator=generator, ema=ema), x_0, metrics


def critic_turn(
    state: TrainState,
    fake: Samples,
    real: Samples | None,
    draws: Mapping[str, PyTree],
    *,
    players: Players,
    config: DistillConfig,
    teacher_params: Params | None = None,
    student_step: Int[Array, ""] | int = 0,
    optimizers: Optimizers = Optimizers(),  # noqa: B008, a constant
) -> tuple[TrainState, Metrics]:
    """Update critic and discriminator once, on given student samples.

        loss = sum of weight * value over the critic's objectives, by default
               mean w(sigma) (x_0_critic - x_0)^2
               + gan_critic_weight (softplus(D(fake)) + softplus(-D(real)))

    Args:
      state: the state; only `critic`, `discriminator` and `step` change.
      fake: the student's samples, constants of this turn.
      real: real samples; None where no objective needs them.
      draws: what the objectives draw, by name.
      players: the networks, without adapters (`Players.on_base`).
      config: the settings.
      teacher_params: the frozen teacher's parameters, for objectives that ask for its passes.
      student_step: which of the student's steps made the samples.
      optimizers: those of `init_state`.

    Returns:
      The new state and metrics.

    Source: DMD2 (arXiv 2405.14867) sections 4.2 and 4.3.
    """
    fake = jax.lax.stop_gradient(fake)

    def loss_fn(params: tuple, part: tuple) -> tuple[Array, tuple[None, Metrics]]:
        fake, real, draws = part
        view = _view(
            "critic",
            config,
            fake,
            student_step,
            draws,
            given_real=real,
            teacher=Network(players.teacher, teacher_params),
            generator=Network(players.generator, state.generator.params),
            critic=_critic(players, params[0], student_step),
            head=_head(players, params[1] if config.has_discriminator else None),
        )
        loss, metrics = _weighed(config.of_player("critic"), view)
        return loss, (None, metrics | {"critic_loss": loss})

    trained: tuple[Player, ...] = (state.critic,)
    if config.has_discriminator:
        assert state.discriminator is not None  # `init_state` refuses else
        trained = (state.critic, state.discriminator)
    gradients, _, metrics = accumulated_grad(
        loss_fn, tuple(p.params for p in trained), (fake, real, draws), config.microbatches
    )
    lr = learning_rate_factor(config, state.step.critic)
    if optimizers.critic is None:
        lr = config.critic_lr * lr
    updated, norm, taken = update_players(trained, gradients, lr, config, optimizers.critic)
    step = state.step._replace(
        critic=state.step.critic + 1,
        skipped=state.step.skipped + ~taken,
        critic_in_a_row=jnp.where(taken, 0, state.step.critic_in_a_row + 1),
    )
    state = state._replace(step=step, critic=updated[0])
    if config.has_discriminator:
        state = state._replace(discriminator=updated[1])
    metrics |= {"critic_grad_norm": norm, _rate("critic", optimizers.critic): lr}
    if real is not None:
        metrics |= sample_statistics("real", real.x_0)
    return state, metrics


def _rate(player: str, own: optax.GradientTransformation | None) -> str:
    """Name what multiplies a player's direction: the rate, or one's own optimiser's factor."""
    return f"{player}_lr" if own is None else f"{player}_lr_factor"


def _head(players: Players, params: Params | None) -> Any:
    """Return features -> logits of the discriminator; None without one."""
    if params is None or players.discriminator is None:
        return None
    return functools.partial(players.discriminator.logits, params)


def _critic(players: Players, params: Params, step: Int[Array, ""] | int) -> Network:
    """Return the critic as it judges samples of a step of the student's."""
    own = params if players.critic_step is None else players.critic_step(params, step)
    return Network(players.critic, own)


def _view(
    player: str,
    config: DistillConfig,
    samples: Samples,
    step: Int[Array, ""] | int,
    draws: Mapping[str, PyTree],
    *,
    generator: Network,
    **rest: Any,
) -> View:
    """Show a turn to its player's objectives; the rest is the View's own."""
    objectives = config.of_player(player)
    net, params = generator
    times, dtype = config.student_times, net.schedule.levels.dtype

    def from_noise(noise: Array, cond: PyTree) -> Array:
        x_t = prior_sample(net, noise, times)
        return net.x0(params, x_t, jnp.full((x_t.shape[0],), times[0], dtype), cond)

    return View(
        x_0=samples.x_0,
        cond=samples.cond,
        step=step,
        t=jnp.full((samples.x_0.shape[0],), jnp.asarray(times, dtype)[step]),
        generator=generator,
        from_noise=from_noise,
        draws=draws,
        sources={name: draw.of for name, draw in merged_draws(objectives).items()},
        gan_features=config.gan_features,
        asked=tuple(one for objective in objectives for one in objective.passes),
        **rest,
    )


def _weighed(objectives: Sequence[Objective], view: View) -> tuple[Array, Metrics]:
    """Return the sum of weight * value over objectives, and the metrics of all."""
    loss, metrics = jnp.float32(0.0), {}
    for objective in objectives:
        seen = dataclasses.replace(view, reader=objective.name)
        value, found = objective.value(seen, view.draws)
        loss += objective.weight * value
        if twice := metrics.keys() & found.keys():
            raise Refused(
                f"objective {objective.name!r} reports {sorted(twice)}, which another one reports "
                "too; give its metrics names of their own."
            )
        metrics |= found
    return loss, metrics
