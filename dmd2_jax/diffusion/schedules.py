"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, and the grids of times drawn from them.

| schedule         | t            | alpha(t)                | sigma(t)         | prior scale |
|------------------|--------------|-------------------------|------------------|-------------|
| `edm`            | sigma itself | 1                       | t                | t           |
| `discrete_vp`    | int 0..n-1   | sqrt(prod (1 - beta))   | sqrt(1-alpha^2)  | 1           |
| `rectified_flow` | (0, 1]       | 1 - t                   | t                | 1           |
"""

import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.denoiser import Schedule
from dmd2_jax.typing import Array, Float, Shaped, expand

__all__ = [
    "add_noise",
    "discrete_vp",
    "edm",
    "is_rectified_flow",
    "karras_sigmas",
    "rectified_flow",
]


def edm(
    *,
    sigma_min: float | int = 0.002,
    sigma_max: float | int = 80.0,
    rho: float | int = 7.0,
    num_levels: int = 1000,
) -> Schedule:
    """Build the variance-exploding schedule of EDM, whose time is sigma itself.

    x_t = x_0 + t eps; levels are rho-spaced from sigma_min up to sigma_max (`karras_sigmas`).

    Args:
      sigma_min: least noise, data units, > 0.
      sigma_max: most noise, data units.
      rho: curvature of the grid, > 0; 1 is uniform, 7 crowds the small sigmas.
      num_levels: size of the grid, >= 2.

    Returns:
      A Schedule with float32 times and levels.

    Raises:
      ValueError: if an argument is out of its range.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 5 and table 1.
    """
    descending = karras_sigmas(num_levels, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return Schedule(
        alpha=lambda t: jnp.ones_like(t, dtype=jnp.float32),
        sigma=_float32,
        levels=descending[-2::-1].astype(np.float32),
        prior_scale=_float32,
    )


def discrete_vp(
    *,
    betas: str = "scaled_linear",
    beta_start: float | int = 0.00085,
    beta_end: float | int = 0.012,
    num_levels: int = 1000,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Build the variance-preserving schedule of DDPM and Stable Diffusion over integer times.

    alpha_t^2 = prod_{i <= t} (1 - beta_i), sigma_t^2 = 1 - alpha_t^2.

    Args:
      betas: "linear" spaces beta evenly (DDPM: 1e-4 to 0.02), "scaled_linear" its square root
        (Stable Diffusion: 0.00085 to 0.012), "cosine" makes alpha_t^2 fall as a squared cosine,
        with no beta above 0.999.
      beta_start: first beta, in (0, 1); without meaning for "cosine".
      beta_end: last beta, in (0, 1), >= beta_start; without meaning for "cosine".
      num_levels: number n of times 0..n-1, >= 2.
      zero_terminal_snr: shift and scale alpha so that its first value stays and its last is 0: at
        time n - 1 nothing of the sample is left, and no network that predicts eps can be used.

    Returns:
      A Schedule with int32 times and levels; a time outside 0..n-1 is clamped to it.

    Raises:
      ValueError: if an argument is out of its range.

    Source: Ho et al. 2020 (arXiv 2006.11239), equation 4; Rombach et al. 2022 for the scaling;
      Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17, for the cosine; Lin et al. 2024
      (arXiv 2305.08891), algorithm 1, for the terminal SNR of zero.
    """
    _check_num_levels(num_levels)
    if not 0.0 < beta_start <= beta_end < 1.0:
        raise Refused(
            f"beta_start={beta_start}, beta_end={beta_end} must satisfy "
            "0 < beta_start <= beta_end < 1; try 0.00085 and 0.012."
        )
    if betas == "linear":
        beta = np.linspace(beta_start, beta_end, num_levels)
    elif betas == "scaled_linear":
        beta = np.linspace(beta_start**0.5, beta_end**0.5, num_levels) ** 2
    elif betas == "cosine":
        wave = np.cos((np.linspace(0.0, 1.0, num_levels + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1.0 - wave[1:] / wave[:-1], 0.999)
    else:
        raise Refused(
            f"betas={betas!r} must be 'linear', 'scaled_linear' or 'cosine'; "
            "Stable Diffusion uses 'scaled_linear', DDPM 'linear'."
        )
    alpha_squared = np.cumprod(1.0 - beta)
    if zero_terminal_snr:
        root = np.sqrt(alpha_squared)
        alpha_squared = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    # sigma comes from the float64 table: 1 - alpha^2 in float32 loses digits at small t.
    alpha_table = np.sqrt(alpha_squared).astype(np.float32)
    sigma_table = np.sqrt(1.0 - alpha_squared).astype(np.float32)
    return Schedule(
        alpha=lambda t: _lookup(alpha_table, t),
        sigma=lambda t: _lookup(sigma_table, t),
        levels=np.arange(num_levels, dtype=np.int32),
        prior_scale=lambda t: jnp.ones_like(t, dtype=jnp.float32),
    )


def rectified_flow(*, shift: float | int = 1.0, num_levels: int = 1000) -> Schedule:
    """Build the straight-line schedule of rectified flow.

    x_t = (1 - t) x_0 + t eps. Levels are t_i = s u_i / (1 + (s - 1) u_i) of the uniform grid
    u_i = (i + 1) / n, i = 0..n-1: from s / (n + s - 1) up to exactly 1, never 0, where the noise
    cannot be told from the sample. The shift moves the levels only, not alpha or sigma.

    Args:
      shift: s > 0; 1 is uniform, 3 (Stable Diffusion 3 at 1024 px) crowds the large times.
      num_levels: size n of the grid, >= 2.

    Returns:
      A Schedule with float32 times and levels.

    Raises:
      ValueError: if an argument is out of its range.

    Source: Liu et al. 2022 (arXiv 2209.03003); the shift is Esser et al. 2024 (arXiv 2403.03206),
      equation 23.
    """
    _check_num_levels(num_levels)
    if not 0.0 < shift < float("inf"):
        raise Refused(f"shift={shift} must be a positive number; try 1.0 (no shift) or 3.0.")
    uniform = np.arange(1, num_levels + 1) / num_levels
    levels = shift * uniform / (1.0 + (shift - 1.0) * uniform)
    return Schedule(
        alpha=lambda t: 1.0 - _float32(t),
        sigma=_float32,
        levels=levels.astype(np.float32),
        prior_scale=lambda t: jnp.ones_like(t, dtype=jnp.float32),
    )


def is_rectified_flow(schedule: Schedule) -> bool:
    """Return whether a schedule is a straight line: sigma(t) = t and alpha(t) = 1 - t.

    Args:
      schedule: the schedule; its ends are looked at.
    """
    ends = schedule.levels[[0, -1]]
    if np.issubdtype(ends.dtype, np.integer):
        return False
    alpha, sigma = (np.asarray(scale(jnp.asarray(ends))) for scale in schedule[:2])
    return bool(np.allclose(sigma, ends) and np.allclose(alpha, 1.0 - ends))


def add_noise(
    schedule: Schedule,
    x_0: Float[Array, "b ..."],
    noise: Float[Array, "b ..."],
    t: Shaped[Array, " b"],
) -> Float[Array, "b ..."]:
    """Diffuse clean samples to time t.

    x_t = alpha(t) x_0 + sigma(t) noise.

    Args:
      schedule: the noise schedule t belongs to.
      x_0: [b, ...], clean samples, data units.
      noise: [b, ...], standard normal.
      t: [b], times of the schedule.

    Returns:
      x_t [b, ...], at least float32.

    Raises:
      ValueError: if t is not one time a sample.
    """
    return expand(schedule.alpha(t), x_0) * x_0 + expand(schedule.sigma(t), x_0) * noise


def karras_sigmas(
    num_steps: int,
    *,
    sigma_min: float | int = 0.002,
    sigma_max: float | int = 80.0,
    rho: float | int = 7.0,
) -> np.ndarray:
    """Compute the descending noise levels of EDM's samplers, with the final 0.

    sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < n,
    sigma_n = 0.

    Args:
      num_steps: number n of sampler steps, >= 2.
      sigma_min: least nonzero noise, data units, > 0.
      sigma_max: first noise level, data units.
      rho: curvature of the grid, > 0.

    Returns:
      float64 [n + 1], from sigma_max down to sigma_min, then 0.

    Raises:
      ValueError: if an argument is out of its range.

    Source: Karras et al. 2022 (arXiv 2206.00364), equation 5.
    """
    _check_num_levels(num_steps)
    if not 0.0 < sigma_min < sigma_max < float("inf"):
        raise Refused(
            f"sigma_min={sigma_min}, sigma_max={sigma_max} must satisfy 0 < sigma_min < sigma_max; "
            "try 0.002 and 80."
        )
    if not 0.0 < rho < float("inf"):
        raise Refused(f"rho={rho} must be a positive number; try 7.")
    first, last = sigma_max ** (1.0 / rho), sigma_min ** (1.0 / rho)
    sigmas = (first + np.linspace(0.0, 1.0, num_steps) * (last - first)) ** rho
    # The ends exactly, so that float(levels[-1]) == sigma_max.
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return np.append(sigmas, 0.0)


def _float32(t: Array) -> Array:
    return jnp.asarray(t, dtype=jnp.float32)


def _lookup(table: np.ndarray, t: Array) -> Array:
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise Refused(
            f"t has dtype {t.dtype}, expected an integer dtype for a discrete schedule; "
            "draw t from schedule.levels."
        )
    return jnp.take(jnp.asarray(table), t, mode="clip")


def _check_num_levels(num_levels: int) -> None:
    if num_levels < 2:
        raise Refused(
            f"got {num_levels} noise levels, expected at least 2; try 1000 for training, "
            "18 for a sampler."
        )
