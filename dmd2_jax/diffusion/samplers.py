"""The teacher's samplers: pure noise to x_0, each one `lax.scan` with one trace of the network.

Every sampler is `sampler(x0_fn, params, noise, cond, *, times, ...)`:

- `x0_fn` is (params, x_t, t [b], cond) -> x_0: `denoiser.x0` or `guided_x0(denoiser, w)`.
- `noise` is standard normal; the sampler scales it. The state has the dtype of `noise` (at least
  float32; float64 under `jax.enable_x64`), while x0_fn always gets float32.
- `times` is a concrete decreasing NumPy grid [n + 1]: n steps, the last entry is where the
  sample is returned. Scalars that depend on it alone are computed in float64 beforehand.
- Stochastic samplers take either `key` or, to fix the noise, `step_noise` [n, ...].
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Schedule
from dmd2_jax.diffusion.schedules import rectified_flow
from dmd2_jax.typing import Array, Float, Key, Params, PyTree

__all__ = ["ddim", "edm_stochastic", "euler_flow", "heun", "sampling_times"]

X0Function = Callable[[Params, Array, Array, PyTree], Array]
Times = np.ndarray | Sequence[int | float]


def heun(
    x0_fn: X0Function,
    params: Params,
    noise: Float[Array, "b ..."],
    cond: PyTree,
    *,
    times: Times,
) -> Float[Array, "b ..."]:
    """Solve EDM's probability-flow ODE with Heun's second-order method.

    d = (x - x_0(x, t)) / t; x' = x + (t' - t) (d + d') / 2, and a plain Euler step to t' = 0.

    Args:
      x0_fn: denoiser of an `edm` schedule (time is sigma); or of a `rectified_flow` one, whose
        ODE is the same, as its slope eps - x_0 is (x - x_0) / t.
      params: its parameters.
      noise: [b, ...], standard normal; the solution starts at noise * times[0].
      cond: condition handed to x0_fn.
      times: [n + 1], decreasing sigmas in data units, the last 0; see `karras_sigmas`. Of a flow
        the first is 1.

    Returns:
      x_0 [b, ...], dtype of `noise`, from 2 n - 1 calls of x0_fn.

    Raises:
      ValueError: if times is not a decreasing grid that ends in 0.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1.
    """
    times = _check_times(times, last=0.0)
    return _edm_scan(x0_fn, params, noise, cond, times, np.zeros(len(times) - 1), noise_at=None)


def edm_stochastic(
    x0_fn: X0Function,
    params: Params,
    noise: Float[Array, "b ..."],
    cond: PyTree,
    *,
    times: Times,
    s_churn: float | int,
    s_min: float | int = 0.0,
    s_max: float | int = float("inf"),
    s_noise: float | int = 1.0,
    step_noise: Float[Array, "n b ..."] | None = None,
    key: Key | None = None,
) -> Float[Array, "b ..."]:
    """Sample with EDM's stochastic Heun method, which adds fresh noise before each step.

    t_hat = t + gamma t, gamma = min(s_churn / n, sqrt(2) - 1) where s_min <= t <= s_max, else 0;
    x_hat = x + sqrt(t_hat^2 - t^2) s_noise eps; then a Heun step from t_hat to t'.

    Args:
      x0_fn: denoiser of an `edm` schedule (time is sigma).
      params: its parameters.
      noise: [b, ...], standard normal; the solution starts at noise * times[0].
      cond: condition handed to x0_fn.
      times: [n + 1], decreasing sigmas in data units, the last 0; see `karras_sigmas`.
      s_churn: amount of fresh noise, >= 0; 0 is `heun`.
      s_min: least sigma that gets noise, data units.
      s_max: largest sigma that gets noise, data units.
      s_noise: scale of the fresh noise, about 1.
      step_noise: [n, b, ...], standard normal, the eps of each step; or
      key: random key to draw them from.

    Returns:
      x_0 [b, ...], dtype of `noise`, from 2 n - 1 calls of x0_fn.

    Raises:
      ValueError: if times is not a decreasing grid that ends in 0, s_churn < 0, or not exactly
        one of step_noise and key is given.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """
    times = _check_times(times, last=0.0)
    if not s_churn >= 0.0:
        raise Refused(f"s_churn={s_churn} must be >= 0; try 40, or heun() for no noise.")
    num_steps = len(times) - 1
    noise_at = _step_noise(noise, num_steps, step_noise, key)
    start = times[:-1]
    gamma = np.where((s_min <= start) & (start <= s_max), min(s_churn / num_steps, 2**0.5 - 1), 0.0)
    return _edm_scan(x0_fn, params, noise, cond, times, gamma, noise_at, s_noise)


def ddim(
    x0_fn: X0Function,
    params: Params,
    noise: Float[Array, "b ..."],
    cond: PyTree,
    *,
    schedule: Schedule,
    times: Times,
    eta: float | int = 0.0,
    step_noise: Float[Array, "n b ..."] | None = None,
    key: Key | None = None,
) -> Float[Array, "b ..."]:
    """Sample with DDIM: predict x_0 and eps, go to the next time with the same eps.

    x' = alpha' x_0 + sqrt(sigma'^2 - s^2) eps + s eps', with
    s = eta (sigma' / sigma) sqrt(sigma^2 - (alpha / alpha')^2 sigma'^2). For sigma^2 = 1 - alpha^2
    that is the paper's formula; as written it holds for every schedule.

    Args:
      x0_fn: denoiser of the schedule.
      params: its parameters.
      noise: [b, ...], standard normal; the solution starts at noise * prior_scale(times[0]).
      cond: condition handed to x0_fn.
      schedule: the noise schedule.
      times: [n + 1], decreasing; the last is where the sample is returned. For a discrete
        schedule -1 is the clean end (alpha 1, sigma 0); Stable Diffusion's own sampler ends
        in 0. See `sampling_times`.
      eta: 0 is the ODE, 1 ancestral sampling; in [0, 1].
      step_noise: [n, b, ...], standard normal, the eps' of each step (eta > 0 only); or
      key: random key to draw them from.

    Returns:
      x at the last of times, [b, ...], dtype of `noise`, from n calls of x0_fn.

    Raises:
      ValueError: if times is not decreasing, eta is outside [0, 1], or eta > 0 without exactly
        one of step_noise and key.

    Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.
    """
    times = _check_times(times)
    if not 0.0 <= eta <= 1.0:
        raise Refused(f"eta={eta} must be in [0, 1]; try 0 (the ODE) or 1 (ancestral).")
    noise_at = None if eta == 0.0 else _step_noise(noise, len(times) - 1, step_noise, key)
    table, prior_scale = _ddim_table(schedule, times, eta)

    def step(x: Array, at: dict[str, Array]) -> tuple[Array, None]:
        x_0 = _call(x0_fn, params, x, at["t"], cond)
        eps = (x - at["alpha"] * x_0) / at["sigma"]
        x = at["alpha_next"] * x_0 + at["eps_scale"] * eps
        if noise_at is not None:
            x = x + at["noise_scale"] * noise_at(at["index"]).astype(x.dtype)
        return x, None

    state = _state(noise)
    t = times[:-1].astype(schedule.levels.dtype)
    xs = _cast(table, state.dtype) | {"t": jnp.asarray(t), "index": jnp.arange(len(t))}
    return jax.lax.scan(step, state * prior_scale, xs)[0]


def euler_flow(
    x0_fn: X0Function,
    params: Params,
    noise: Float[Array, "b ..."],
    cond: PyTree,
    *,
    times: Times,
) -> Float[Array, "b ..."]:
    """Solve the ODE of a rectified flow with Euler's method.

    x' = x + (t' - t) (x - x_0(x, t)) / t = (1 - t') x_0 + t' eps: DDIM on that schedule, and
    computed so.

    Args:
      x0_fn: denoiser of a `rectified_flow` schedule.
      params: its parameters.
      noise: [b, ...], standard normal; the solution starts there.
      cond: condition handed to x0_fn.
      times: [n + 1], decreasing from at most 1, the last >= 0; see `sampling_times`.

    Returns:
      x at the last of times, [b, ...], dtype of `noise`, from n calls of x0_fn.

    Raises:
      ValueError: if times is not decreasing or leaves [0, 1].

    Source: Liu et al. 2022 (arXiv 2209.03003), equation 1 discretised.
    """
    times = _check_times(times)
    if times[0] > 1.0 or times[-1] < 0.0:
        raise Refused(
            f"times run from {times[0]} to {times[-1]}, expected within [0, 1]; "
            "try sampling_times(rectified_flow(), n)."
        )
    return ddim(x0_fn, params, noise, cond, schedule=rectified_flow(), times=times)


def sampling_times(schedule: Schedule, num_steps: int) -> np.ndarray:
    """Pick the times of a sampler evenly from a schedule's levels, most noisy level first.

    Level number round(n (1 - i / num_steps)) - 1 for step i ("trailing" spacing), then the clean
    end: 0, or -1 for a discrete schedule. 1000 levels and 4 steps: 999, 749, 499, 249, -1.

    Args:
      schedule: the noise schedule.
      num_steps: number of steps, in 1..len(levels).

    Returns:
      [num_steps + 1], float64, decreasing.

    Raises:
      ValueError: if num_steps is out of range.

    Source: Lin et al. 2024 (arXiv 2305.08891), table 2.
    """
    n = len(schedule.levels)
    if not 1 <= num_steps <= n:
        raise Refused(
            f"num_steps={num_steps} must be in 1..{n}, the number of levels; try {min(n, 50)}."
        )
    index = np.round(n - np.arange(num_steps) * (n / num_steps)).astype(int) - 1
    discrete = np.issubdtype(schedule.levels.dtype, np.integer)
    return np.append(schedule.levels[index].astype(np.float64), -1.0 if discrete else 0.0)


def _edm_scan(
    x0_fn: X0Function,
    params: Params,
    noise: Array,
    cond: PyTree,
    times: np.ndarray,
    gamma: np.ndarray,
    noise_at: Callable[[Array], Array] | None,
    s_noise: float | int = 1.0,
) -> Array:
    """Run Heun's method as one scan over the 2 n - 1 network calls.

    Scanning over calls, not steps, keeps a single trace of the network: a predictor call moves
    from x_hat along its own slope, the corrector call after it starts again from the same
    x_hat along the mean of both slopes.
    """
    t_cur, t_next = times[:-1], times[1:]
    t_hat = t_cur + gamma * t_cur
    # Two rows a step (predictor, corrector); the step to 0 has no corrector.
    table = {
        "t": np.stack([t_hat, t_next], 1).ravel()[:-1],
        "move": np.repeat(t_next - t_hat, 2)[:-1],
        "noise_scale": np.repeat(np.sqrt(t_hat**2 - t_cur**2) * s_noise, 2)[:-1],
    }
    calls = np.arange(len(table["t"]))

    def call(carry: tuple[Array, Array, Array], at: dict[str, Array]):
        x, x_hat, slope = carry
        if noise_at is not None:
            fresh = at["noise_scale"] * noise_at(at["step"]).astype(x.dtype)
            x = jnp.where(at["corrects"], x, x + fresh)
        x_hat = jnp.where(at["corrects"], x_hat, x)
        new_slope = (x - _call(x0_fn, params, x, at["t"], cond)) / at["t"]
        slope = jnp.where(at["corrects"], (slope + new_slope) / 2, new_slope)
        return (x_hat + at["move"] * slope, x_hat, slope), None

    state = _state(noise)
    state = state * jnp.asarray(times[0], state.dtype)
    xs = _cast(table, state.dtype) | {
        "step": jnp.asarray(calls // 2),
        "corrects": jnp.asarray(calls % 2 == 1),
    }
    return jax.lax.scan(call, (state, state, jnp.zeros_like(state)), xs)[0][0]


def _ddim_table(
    schedule: Schedule, times: np.ndarray, eta: float | int
) -> tuple[dict[str, np.ndarray], float]:
    """Compute DDIM's scalars a step in float64, and the scale of the first noise."""
    t = times.astype(schedule.levels.dtype)
    with jax.ensure_compile_time_eval():
        alpha = np.asarray(schedule.alpha(jnp.asarray(t)), np.float64)
        sigma = np.asarray(schedule.sigma(jnp.asarray(t)), np.float64)
        prior_scale = float(schedule.prior_scale(jnp.asarray(t[:1]))[0])
    if np.issubdtype(t.dtype, np.integer) and t[-1] < 0:
        alpha[-1], sigma[-1] = 1.0, 0.0
    ratio = alpha[:-1] / alpha[1:]
    # Nonnegative in exact arithmetic; the schedule's float32 can leave it just below 0.
    variance = np.maximum(sigma[:-1] ** 2 - (ratio * sigma[1:]) ** 2, 0.0)
    noise_scale = eta * sigma[1:] / sigma[:-1] * np.sqrt(variance)
    table = {
        "alpha": alpha[:-1],
        "sigma": sigma[:-1],
        "alpha_next": alpha[1:],
        "eps_scale": np.sqrt(np.maximum(sigma[1:] ** 2 - noise_scale**2, 0.0)),
        "noise_scale": noise_scale,
    }
    return table, prior_scale


def _call(x0_fn: X0Function, params: Params, x: Array, t: Array, cond: PyTree) -> Array:
    """Call the network in float32 with one time a sample; the answer has the state's dtype."""
    if jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(jnp.float32)
    t = jnp.broadcast_to(t, x.shape[:1])
    return x0_fn(params, x.astype(jnp.float32), t, cond).astype(x.dtype)


def _state(noise: Array) -> Array:
    noise = jnp.asarray(noise)
    return noise.astype(jnp.promote_types(noise.dtype, jnp.float32))


def _cast(table: dict[str, np.ndarray], dtype: jnp.dtype) -> dict[str, Array]:
    return {name: jnp.asarray(values, dtype) for name, values in table.items()}


def _step_noise(
    noise: Array, num_steps: int, step_noise: Array | None, key: Key | None
) -> Callable[[Array], Array]:
    """Return step number -> that step's noise, from the given array or drawn from the key."""
    if key is not None and step_noise is None:
        return lambda step: jax.random.normal(
            jax.random.fold_in(key, step), noise.shape, jnp.float32
        )
    if step_noise is None or key is not None:
        raise Refused(
            f"got {'neither' if key is None else 'both'} of step_noise and key, expected exactly "
            "one; pass key=jax.random.key(seed), or step_noise to fix the noise."
        )
    expected = (num_steps, *noise.shape)
    if step_noise.shape != expected:
        raise Refused(
            f"step_noise has shape {step_noise.shape}, expected [steps, b, ...] = {expected}; "
            "pass one array of noise a step."
        )
    step_noise = jnp.asarray(step_noise)
    return lambda step: step_noise[step]


def _check_times(times: Times, last: float | None = None) -> np.ndarray:
    grid = np.asarray(times, np.float64)
    decreasing = grid.ndim == 1 and len(grid) >= 2 and bool(np.all(np.diff(grid) < 0))
    if not decreasing or (last is not None and grid[-1] != last):
        end = "" if last is None else f" that ends in {last:g}"
        raise Refused(
            f"times={times} must be a decreasing grid [n + 1]{end}; "
            "try karras_sigmas(18) or sampling_times(schedule, 50)."
        )
    return grid
