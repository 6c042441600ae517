"""One step of a teacher's training, as a pure function of a state: EDM's objective, eps or flow."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.schedules import add_noise
from dmd2_jax.distill.health import average_by_level
from dmd2_jax.distill.updates import cosine, moving_average, ramped_decay, taken_if
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.runtime.distributed import put
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.typing import Array, Float, Int, Key, Params, PyTree, expand

__all__ = ["TeacherConfig", "TeacherState", "init_teacher_state", "teacher_loss", "teacher_step"]

X0WithKey = Callable[[Params, Array, Array, PyTree, Key], Array]


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The settings of teacher training; the defaults are EDM's.

    Attributes:
      objective: "edm" (for families whose time is sigma), "eps", or "flow" (rectified flows).
      lr: Adam's learning rate after the warm-up.
      b1, b2: how slowly Adam's moments forget; its eps is 1e-8.
      warmup: steps of linear warm-up; 0 is none.
      lr_schedule: after the warm-up: "constant" or "cosine" (to 0 at step `steps`).
      steps: length of the whole training, for the cosine.
      ema_decay: of the average that is exported; min(decay, (1 + n) / (10 + n)) at step n.
      p_mean, p_std: of "edm": ln sigma is normal with these; of "flow": ln t / (1 - t).
      label_dropout: probability that a sample is trained without its condition, for guidance.
      sigma_data: standard deviation of the data.
    """

    objective: str = "edm"
    lr: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    warmup: int = 100
    lr_schedule: str = "constant"
    steps: int = 0
    ema_decay: float = 0.999
    p_mean: float = -1.2
    p_std: float = 1.2
    label_dropout: float = 0.0
    sigma_data: float = 0.5


class TeacherState(NamedTuple):
    """All that a teacher's training has learned.

    Attributes:
      step: [] int32, steps taken.
      skipped: [] int32, of these the ones without an update, for gradients that are not finite.
      in_a_row: [] int32, steps without an update since the last one.
      params: the weights.
      opt_state: Adam's.
      ema: the average of the weights.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    params: Params
    opt_state: PyTree
    ema: Params


def init_teacher_state(params: Params, places: TeacherState | None = None) -> TeacherState:
    """Make the state of step 0 from initial weights, which are copied.

    Args:
      params: the weights.
      places: where the state belongs, from `state_shardings`; the weights go there before they are
        copied, so that no device holds more than its part. None: where JAX puts new arrays.
    """
    params = params if places is None else put(params, places.params)

    def copy() -> Params:
        return jax.tree.map(lambda p: jnp.array(p, copy=True), params)

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    # Adam's zeros are made like the weights, whatever its settings: where these lie, and split so.
    return TeacherState(zero(), zero(), zero(), copy(), _adam(TeacherConfig()).init(params), copy())


def teacher_loss(
    params: Params,
    x_0: Float[Array, "b ..."],
    cond: PyTree,
    key: Key,
    *,
    x0_fn: X0WithKey,
    denoiser: Denoiser,
    config: TeacherConfig,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Return the denoising loss on one batch: mean( w (x_0(x_t, t) - x_0)^2 ).

        edm   ln t ~ N(p_mean, p_std^2), w = (t^2 + sigma_data^2) / (t sigma_data)^2; t is sigma
        eps   t uniform among the schedule's levels, w = alpha^2 / sigma^2: the error of eps
        flow  ln t / (1 - t) ~ N(p_mean, p_std^2), w = 1 / t^2: the error of eps - x_0

    Args:
      params: the network's parameters; the gradient is theirs.
      x_0: [b, ...], images in [-1, 1].
      cond: leading axis b, or None.
      key: of noise, levels, label dropout and dropout.
      x0_fn: (params, x_t, t, cond, key) -> x_0.
      denoiser: whose schedule noises, and whose null_cond drops labels.
      config: the settings.

    Returns:
      The loss and the metrics `denoising_loss`, `denoising_error_by_level`.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 2 and table 1, but no augmentation; Ho
      et al. 2020 (arXiv 2006.11239), equation 14; Esser et al. 2024 (arXiv 2403.03206), equation
      19, for the times of a flow.
    """
    b, schedule = x_0.shape[0], denoiser.schedule
    if config.objective == "edm":
        normal = jax.random.normal(stream_key(key, "sigma"), (b,))
        t = jnp.exp(config.p_mean + config.p_std * normal)
    elif config.objective == "flow":
        normal = jax.random.normal(stream_key(key, "time"), (b,))
        t = jax.nn.sigmoid(config.p_mean + config.p_std * normal)
        t = jnp.clip(t, schedule.levels[0], schedule.levels[-1])  # v is not known at t = 0
    else:
        number = jax.random.randint(stream_key(key, "level"), (b,), 0, len(schedule.levels))
        t = jnp.asarray(schedule.levels)[number]
    noise = jax.random.normal(stream_key(key, "noise"), x_0.shape)
    if config.label_dropout > 0:
        drop = jax.random.bernoulli(stream_key(key, "labels"), config.label_dropout, (b,))
        cond = jax.tree.map(
            lambda c, n: jnp.where(expand(drop, c), n, c), cond, denoiser.null_cond(cond)
        )
    x_0_teacher = x0_fn(
        params, add_noise(schedule, x_0, noise, t), t, cond, stream_key(key, "dropout")
    )
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    weight = denoising_weight(config.objective, alpha, sigma, sigma_data=config.sigma_data)
    loss, metrics = denoising_loss(x_0_teacher, x_0, weight=weight)
    level = jnp.clip(jnp.searchsorted(schedule.levels, t), 0, len(schedule.levels) - 1)
    errors = average_by_level(metrics.pop("denoising_errors"), level, schedule)
    return loss, metrics | {"denoising_error_by_level": errors}


def teacher_step(
    state: TeacherState,
    x_0: Float[Array, "b ..."],
    cond: PyTree,
    key: Key,
    *,
    x0_fn: X0WithKey,
    denoiser: Denoiser,
    config: TeacherConfig,
) -> tuple[TeacherState, dict[str, Any]]:
    """Take one Adam step on `teacher_loss`, and one step of the average.

    A step whose gradient is not finite changes nothing but the counts.

    Args:
      state: the state; donate it.
      x_0: see `teacher_loss`.
      cond: see `teacher_loss`.
      key: this step's own, `stream_key(root, "teacher", step)`.
      x0_fn: see `teacher_loss`.
      denoiser: see `teacher_loss`.
      config: the settings.

    Returns:
      The new state and metrics: denoising_loss, denoising_error_by_level, grad_norm, lr,
      skipped_updates, skipped_in_a_row.
    """
    loss = functools.partial(teacher_loss, x0_fn=x0_fn, denoiser=denoiser, config=config)
    gradient, metrics = jax.grad(loss, has_aux=True)(state.params, x_0, cond, key)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm)
    taken = (state.step - state.skipped).astype(jnp.float32)
    lr = _learning_rate(config, taken)
    direction, opt_state = _adam(config).update(gradient, state.opt_state, state.params)
    params = jax.tree.map(lambda p, d: p - lr * d, state.params, direction)
    ema = moving_average(state.ema, params, ramped_decay(config.ema_decay, taken))
    new, old = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    params, opt_state, ema = taken_if(finite, new, old)
    skipped = state.skipped + ~finite
    in_a_row = jnp.where(finite, 0, state.in_a_row + 1)
    metrics |= {"grad_norm": norm, "lr": jnp.float32(lr)}
    metrics |= {"skipped_updates": skipped, "skipped_in_a_row": in_a_row}
    return TeacherState(state.step + 1, skipped, in_a_row, params, opt_state, ema), metrics


def _learning_rate(config: TeacherConfig, taken: Float[Array, ""]) -> Float[Array, ""]:
    """Return the rate of the next update after `taken` of them: warm-up, then the schedule."""
    warm = (taken + 1.0) / config.warmup if config.warmup else jnp.ones(())
    lr = config.lr * jnp.minimum(1.0, warm)
    if config.lr_schedule == "cosine":
        progress = (taken - config.warmup) / max(config.steps - config.warmup, 1)
        lr *= cosine(progress)
    return lr


def _adam(config: TeacherConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=1e-8)
