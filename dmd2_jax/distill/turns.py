"""The two turns of the game: one update of the generator, one of critic and discriminator."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill.accumulate import accumulated_grad
from dmd2_jax.distill.config import DistillConfig, Players
from dmd2_jax.distill.draws import CriticDraws, GeneratorDraws, RolloutDraws, noised
from dmd2_jax.distill.health import average_by_level, sample_statistics
from dmd2_jax.distill.rollout import backward_simulation, prior_sample
from dmd2_jax.distill.state import TrainState, learning_rate_factor, update_ema, update_players
from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.losses.regression import Distance, regression_loss, squared_error
from dmd2_jax.runtime.summaries import Average, histogram
from dmd2_jax.typing import Array, Float, Params, PyTree, Shaped

Metrics = dict[str, Any]


class Samples(NamedTuple):
    """A batch of samples with their conditions: x_0 [b, ...], cond with leading axis b or None."""

    x_0: Array
    cond: PyTree


class Pairs(NamedTuple):
    """Teacher ODE pairs for the regression loss: noise [b, ...] (standard normal) -> x_0, cond."""

    noise: Float[Array, "b ..."]
    x_0: Float[Array, "b ..."]
    cond: PyTree


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
    draws: GeneratorDraws,
    *,
    players: Players,
    config: DistillConfig,
    real: Array | None = None,
    pairs: Pairs | None = None,
    distance: Distance = squared_error,
) -> tuple[TrainState, Float[Array, "b ..."], Metrics]:
    """Update the generator once.

        loss = dm_weight L_DM + gan_generator_weight softplus(-D) + regression_weight L_reg

    Args:
      state: the state; only `generator`, `ema` and `step` change.
      teacher_params: the frozen teacher's parameters.
      cond: conditions of the student's batch, leading axis b.
      rollout: what the student's samples are made from.
      draws: how they are noised for each loss.
      players: the networks, without adapters (`Players.on_base`).
      config: the settings.
      real: [b, ...] real samples for students trained on noised data.
      pairs: teacher ODE pairs, needed when config.regression_weight is set.
      distance: the regression's distance.

    Returns:
      The new state, the student's samples made BEFORE the update ([b, ...]), and metrics.

    Source: DMD2 (arXiv 2405.14867) section 4, algorithm as in the official training script.
    """

    def loss_fn(params: Params, part: tuple) -> tuple[Array, tuple[Array, Metrics]]:
        noise, cond, draws, real, pairs = part
        inputs = RolloutDraws(jnp.moveaxis(noise, 0, 1), rollout.step)
        x_0 = student_samples(players, params, inputs, cond, real, config)
        loss, metrics = _generator_losses(
            x_0, cond, state, teacher_params, draws, players=players, config=config
        )
        if config.regression_weight is not None:
            x_t = prior_sample(players.generator, pairs.noise, config.student_times)
            t = jnp.full(
                (x_t.shape[0],), config.student_times[0], players.generator.schedule.levels.dtype
            )
            from_noise = players.generator.x0(params, x_t, t, pairs.cond)
            regression, m = regression_loss(from_noise, pairs.x_0, distance=distance)
            loss += config.regression_weight * regression
            metrics |= m | {"generator_loss": loss}
        return loss, (x_0, metrics)

    whole = (jnp.moveaxis(rollout.noise, 1, 0), cond, draws, real, pairs)
    gradient, x_0, metrics = accumulated_grad(
        loss_fn, state.generator.params, whole, config.microbatches
    )
    lr = config.generator_lr * learning_rate_factor(config, state.step.critic)
    (generator,), norm, taken = update_players((state.generator,), (gradient,), lr, config)
    ema = update_ema(state.ema, generator.params, state.step.generator, config)
    step = state.step._replace(
        generator=state.step.generator + 1,
        skipped=state.step.skipped + ~taken,
        generator_in_a_row=jnp.where(taken, 0, state.step.generator_in_a_row + 1),
    )
    metrics |= {"generator_grad_norm": norm, "generator_lr": lr}
    metrics |= sample_statistics("generated", x_0)
    return state._replace(step=step, generator=generator, ema=ema), x_0, metrics


def _generator_losses(
    x_0: Array,
    cond: PyTree,
    state: TrainState,
    teacher_params: Params,
    draws: GeneratorDraws,
    *,
    players: Players,
    config: DistillConfig,
) -> tuple[Array, Metrics]:
    """Weigh distribution matching and the GAN on the student's samples x_0."""
    critic, loss, metrics, features = players.critic, jnp.float32(0.0), {}, None
    critic_params = state.critic.params
    if config.dm_weight is not None:
        x_t, t = noised(critic.schedule, x_0, draws.dm)
        if config.shared_pass and config.has_gan:
            x_0_critic, features = critic.x0_and_features(critic_params, x_t, t, cond)
        else:
            x_t = jax.lax.stop_gradient(x_t)
            x_0_critic = critic.x0(critic_params, x_t, t, cond)
        teacher_x0 = guided_x0(players.teacher, config.guidance)
        x_0_teacher = teacher_x0(teacher_params, jax.lax.stop_gradient(x_t), t, cond)
        dm, m = distribution_matching_loss(
            x_0, x_0_teacher, x_0_critic, normalizer_floor=config.normalizer_floor
        )
        loss += config.dm_weight * dm
        norms = m.pop("dm_grad_norms")
        metrics |= m | {
            "dm_grad_norm_by_level": average_by_level(norms, draws.dm.level, critic.schedule),
            "dm_floor_share": Average(
                m["dm_floor_hits"].astype(jnp.float32), jnp.int32(norms.shape[0])
            ),
        }
    if config.gan_generator_weight is not None:
        if features is None:
            x_t, t = noised(critic.schedule, x_0, draws.gan)
            features = critic.features(critic_params, x_t, t, cond)
        logits = players.discriminator.logits(state.discriminator.params, features)
        gan, m = generator_adversarial_loss(logits)
        loss += config.gan_generator_weight * gan
        metrics |= m
    return loss, metrics | {"generator_loss": loss}


def critic_turn(
    state: TrainState,
    fake: Samples,
    real: Samples | None,
    draws: CriticDraws,
    *,
    players: Players,
    config: DistillConfig,
) -> tuple[TrainState, Metrics]:
    """Update critic and discriminator once, on given student samples.

        loss = mean w(sigma) (x_0_critic - x_0)^2
               + gan_critic_weight (softplus(D(fake)) + softplus(-D(real)))

    Args:
      state: the state; only `critic`, `discriminator` and `step` change.
      fake: the student's samples, constants of this turn.
      real: real samples; None without a GAN.
      draws: how the samples are noised.
      players: the networks, without adapters (`Players.on_base`).
      config: the settings.

    Returns:
      The new state and metrics.

    Source: DMD2 (arXiv 2405.14867) sections 4.2 and 4.3.
    """
    fake = jax.lax.stop_gradient(fake)

    def loss_fn(params: tuple, part: tuple) -> tuple[Array, tuple[None, Metrics]]:
        fake, real, draws = part
        loss, metrics = _critic_losses(params, fake, real, draws, players=players, config=config)
        return loss, (None, metrics)

    trained = (state.critic,) if not config.has_gan else (state.critic, state.discriminator)
    gradients, _, metrics = accumulated_grad(
        loss_fn, tuple(p.params for p in trained), (fake, real, draws), config.microbatches
    )
    lr = config.critic_lr * learning_rate_factor(config, state.step.critic)
    updated, norm, taken = update_players(trained, gradients, lr, config)
    step = state.step._replace(
        critic=state.step.critic + 1,
        skipped=state.step.skipped + ~taken,
        critic_in_a_row=jnp.where(taken, 0, state.step.critic_in_a_row + 1),
    )
    state = state._replace(step=step, critic=updated[0])
    if config.has_gan:
        state = state._replace(discriminator=updated[1])
    metrics |= {"critic_grad_norm": norm, "critic_lr": lr}
    if real is not None:
        metrics |= sample_statistics("real", real.x_0)
    return state, metrics


def _critic_losses(
    params: tuple,
    fake: Samples,
    real: Samples | None,
    draws: CriticDraws,
    *,
    players: Players,
    config: DistillConfig,
) -> tuple[Array, Metrics]:
    """Weigh score matching on the student's samples and the GAN on real against fake."""
    critic, loss, metrics, features_fake = players.critic, jnp.float32(0.0), {}, None
    if config.train_critic:
        x_t, t = noised(critic.schedule, fake.x_0, draws.denoising)
        if config.shared_pass and config.has_gan:
            x_0_critic, features_fake = critic.x0_and_features(params[0], x_t, t, fake.cond)
        else:
            x_0_critic = critic.x0(params[0], x_t, t, fake.cond)
        weight = denoising_weight(
            config.denoising_weight,
            critic.schedule.alpha(t),
            critic.schedule.sigma(t),
            sigma_data=config.sigma_data,
        )
        dsm, m = denoising_loss(x_0_critic, fake.x_0, weight=weight)
        loss += dsm
        errors = average_by_level(m.pop("denoising_errors"), draws.denoising.level, critic.schedule)
        metrics |= m | {"critic_error_by_level": errors}
    if config.has_gan:
        logits = players.discriminator.logits
        x_real, t_real = noised(critic.schedule, real.x_0, draws.real)
        if features_fake is None:
            x_fake, t_fake = noised(critic.schedule, fake.x_0, draws.fake)
            both = jax.tree.map(
                _interleave, (x_real, t_real, real.cond), (x_fake, t_fake, fake.cond)
            )
            logits_both = logits(params[1], critic.features(params[0], *both))
            logits_real, logits_fake = logits_both[0::2], logits_both[1::2]
        else:
            features_real = critic.features(params[0], x_real, t_real, real.cond)
            logits_real = logits(params[1], features_real)
            logits_fake = logits(params[1], features_fake)
        gan, m = discriminator_adversarial_loss(logits_real, logits_fake)
        loss += config.gan_critic_weight * gan
        metrics |= m | {
            "logits_real_histogram": histogram(logits_real),
            "logits_fake_histogram": histogram(logits_fake),
        }
    return loss, metrics | {"critic_loss": loss}


def _interleave(a: Array, b: Array) -> Array:
    """Merge two [b, ...] batches to [2 b, ...], sample by sample.

    One pass over both is faster than two; alternating them keeps every sample on its own device
    when the batch is sharded, which a concatenation would not.
    """
    return jnp.stack([a, b], axis=1).reshape((2 * a.shape[0], *a.shape[1:]))
