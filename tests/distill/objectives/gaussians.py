"""Turns on Gaussian data, where teacher, critic and the density ratio are known in closed form."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmd2_jax.denoiser import Denoiser, Schedule
from dmd2_jax.distill.objectives import Network, Noising, Objective, Samples, View
from dmd2_jax.distill.objectives.contract import merged_draws
from dmd2_jax.typing import expand

SCHEDULE = Schedule(
    alpha=lambda t: 1.0 / (1.0 + t),
    sigma=lambda t: t / (1.0 + t),
    levels=np.linspace(0.1, 3.0, 30, dtype=np.float32),
    prior_scale=jnp.ones_like,
)
TEACHER_STD, STUDENT_STD = 1.0, 0.7


def x0_factor(std: Any, t: Any) -> Any:
    """Return a of E[x_0 | x_t] = a x_t for data of N(0, std^2)."""
    alpha, sigma = 1.0 / (1.0 + t), t / (1.0 + t)
    return alpha * std**2 / (alpha**2 * std**2 + sigma**2)


def _x0(params, x_t, t, cond):
    # What the condition asks for is a mean; a condition of 0 is none.
    mean = 0.0 if cond is None else expand(cond, x_t)
    alpha = expand(SCHEDULE.alpha(t), x_t)
    return mean + expand(x0_factor(params["std"], t), x_t) * (x_t - alpha * mean)


DENOISER = Denoiser(
    x0=_x0,
    features=lambda params, x_t, t, cond: (x_t, t),
    x0_and_features=lambda params, x_t, t, cond: (_x0(params, x_t, t, cond), (x_t, t)),
    schedule=SCHEDULE,
    null_cond=jnp.zeros_like,
)


def log_ratio(features: tuple) -> Any:
    """Return log p_data(x_t) / p_student(x_t) of one value a sample."""
    x_t, t = features
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    data, student = ((alpha * std) ** 2 + sigma**2 for std in (TEACHER_STD, STUDENT_STD))
    square = jnp.square(x_t[:, 0])
    return 0.5 * (jnp.log(student / data) + square * (1.0 / student - 1.0 / data))


def view(
    x_0: Any,
    draws: Mapping[str, Noising],
    *objectives: Objective,
    real: Any = None,
    **changes: Any,
) -> View:
    """Return a turn of these samples [b, 1], as these objectives see it."""
    b = x_0.shape[0]
    given = {
        "x_0": x_0,
        "cond": None,
        "step": 0,
        "t": jnp.full((b,), SCHEDULE.levels[-1]),
        "teacher": Network(DENOISER, {"std": TEACHER_STD}),
        "generator": Network(DENOISER, {"std": TEACHER_STD}),
        "critic": Network(DENOISER, {"std": STUDENT_STD}),
        "head": log_ratio,
        "from_noise": lambda noise, cond: noise,
        "draws": draws,
        "sources": {name: draw.of for name, draw in merged_draws(objectives).items()},
        "asked": tuple(one for objective in objectives for one in objective.passes),
        "given_real": None if real is None else Samples(real, None),
    }
    return View(**{**given, **changes})
