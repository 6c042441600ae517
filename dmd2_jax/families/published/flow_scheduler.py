"""A FlowMatchEulerDiscreteScheduler's scheduler_config.json: the flow's levels and their shift."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.diffusion.schedules import rectified_flow
from dmd2_jax.families.published.scheduler import FLOW_TIMES, Diffusion, recorded_as
from dmd2_jax.networks.published_config import check_kinds

__all__ = [
    "FLOW_STUDENT_SCHEDULERS",
    "PIPELINE_SHIFTS",
    "flow_shift",
    "flow_student_scheduler",
    "flow_times",
    "is_flow",
    "read_flow_scheduler",
]

FLOW_STUDENT_SCHEDULERS = ("euler", "lcm")
"""Kinds of `flow_student_scheduler`."""

_OWN_SHIFT = "_shift"
PIPELINE_SHIFTS: Mapping[str, Mapping[str, str]] = {"Flux2KleinPipeline": {_OWN_SHIFT: "flux2"}}
"""Notes beside what scheduler_config.json holds, of pipelines that shift in a way of their own."""

_STEPS = 50  # of the pipelines that follow their number, where none is said
_MANY_TOKENS = 4300
_OF_TEN, _OF_200 = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)  # slope and start

_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")
_DEFAULTS: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": False,
}
# What says how to sample, and changes no level.
_IGNORED = ("scale_factors", "stochastic_sampling", "upscale_mode")


def is_flow(config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler_config.json is that of a flow."""
    return config.get("_class_name") in _CLASSES


def adds_noise(config: Mapping[str, Any]) -> bool:
    """Return whether a flow's scheduler_config.json says that fresh noise comes between steps."""
    return is_flow(config) and (
        config["_class_name"] == _CLASSES[1] or config.get("stochastic_sampling") is True
    )


def flow_times(config: Mapping[str, Any], num_steps: int, tokens: int) -> np.ndarray:
    """Return the times of Euler's steps: equal parts of 1 to 0, then shifted.

    With a shift_terminal they are then stretched, so that the last one above 0 is that; a single
    step stays at 1, of which diffusers makes NaN. So do diffusers' pipelines of FLUX.1 and of
    Qwen-Image; that of SD 3 gives its scheduler no times, which then ends its steps closer to 0.

    Args:
      config: what scheduler_config.json holds.
      num_steps: number of steps n.
      tokens: of the image.

    Returns:
      [n + 1], float64, from 1 to 0.
    """
    uniform, shift = np.linspace(1.0, 0.0, num_steps + 1), flow_shift(config, tokens, num_steps)
    times, last = shift * uniform / (1.0 + (shift - 1.0) * uniform), config.get("shift_terminal")
    if last and num_steps > 1:
        times[:-1] = 1.0 - (1.0 - times[:-1]) * (1.0 - last) / (1.0 - times[-2])
    return times


def flow_shift(config: Mapping[str, Any], tokens: int, steps: int = _STEPS) -> float:
    """Return the shift s of the levels, t = s u / (1 + (s - 1) u).

    With use_dynamic_shifting it follows the size of the image: mu lies on the line through
    (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), and s = exp(mu), or mu
    where time_shift_type is "linear". With FLUX.2's note (`PIPELINE_SHIFTS`) mu also follows the
    number of steps: on the line through those of 10 and of 200 steps, each a line of the tokens;
    above 4300 tokens it is that of 200 steps.

    Args:
      config: what scheduler_config.json holds; absent settings have diffusers' defaults.
      tokens: of the image, as the network counts them.
      steps: of the sampler; by default the pipelines' 50.

    Raises:
      Refused: if time_shift_type is another.
    """
    check_kinds(config, _DEFAULTS, "flow's scheduler")
    c = _DEFAULTS | dict(config)
    if not c["use_dynamic_shifting"]:
        return float(c["shift"])
    if c["time_shift_type"] not in ("exponential", "linear"):
        raise Refused(
            f"time_shift_type={c['time_shift_type']!r}, expected 'exponential' or 'linear'; use a "
            "scheduler_config.json of the network's own release."
        )
    mu = _mu_of_flux2(tokens, steps) if _OWN_SHIFT in c else _mu(c, tokens)
    return math.exp(mu) if c["time_shift_type"] == "exponential" else mu


def _mu(c: Mapping[str, Any], tokens: int) -> float:
    slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
    return c["base_shift"] + slope * (tokens - c["base_image_seq_len"])


def _mu_of_flux2(tokens: int, steps: int) -> float:
    few, many = (slope * tokens + start for slope, start in (_OF_TEN, _OF_200))
    return many if tokens > _MANY_TOKENS else few + (many - few) * (steps - 10) / 190


def read_flow_scheduler(config: Mapping[str, Any], tokens: int) -> Diffusion:
    """Read the flow out of a scheduler's config.

    Args:
      config: what scheduler_config.json holds; {}: 1000 levels without a shift.
      tokens: of the image, which a dynamic shift follows.

    Returns:
      A `rectified_flow` schedule, and "flow".

    Raises:
      Refused: if the scheduler is of another prediction, or asks for what is not built here.
    """
    name = config.get("_class_name", _CLASSES[0])
    if name not in _CLASSES or "beta_schedule" in config:
        raise Refused(
            f"scheduler_config.json is of class {name!r}, expected {' or '.join(_CLASSES)}: the "
            "network predicts a flow; take the scheduler of the network's own release."
        )
    known = {*_DEFAULTS, *_IGNORED}
    odd = {
        key: value
        for key, value in config.items()
        if key not in known and not key.startswith("_") and value not in (None, False)
    }
    if odd:
        said = ", ".join(f"{key}={value!r}" for key, value in sorted(odd.items()))
        raise Refused(
            f"config of a {name} asks for what is not built here: {said}, expected the levels of a "
            "flow with a shift; use another model, with the scheduler_config.json of its release."
        )
    last = config.get("shift_terminal")
    if last is not None and not (isinstance(last, int | float) and 0 <= last < 1):
        raise Refused(
            f"shift_terminal={last!r}, expected the last time above 0, a number below 1, or null; "
            "use a scheduler_config.json of the network's own release."
        )
    levels = config.get("num_train_timesteps", _DEFAULTS["num_train_timesteps"])
    schedule = rectified_flow(shift=flow_shift(config, tokens), num_levels=levels)
    return Diffusion(schedule, "flow")


def flow_student_scheduler(
    config: Mapping[str, Any],
    times: Sequence[float],
    kind: str = "euler",
    *,
    size: Size,
    guidance: float | None = None,
    by_size: Mapping[Size, Sequence[float]] | None = None,
    scales: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the config of a scheduler with which diffusers samples a flow's few-step student.

    | kind    | class                                                    |
    |---------|----------------------------------------------------------|
    | "euler" | FlowMatchEulerDiscreteScheduler with stochastic_sampling |
    | "lcm"   | FlowMatchLCMScheduler                                    |

    A step of both is the student's: x_0, and then fresh noise. Both shift the sigmas that they are
    given once more, so the shift is written as 1: the student's times have the teacher's already.

    Args:
      config: what the teacher's scheduler_config.json holds.
      times: the student's, decreasing, in (0, 1].
      kind: a name of `FLOW_STUDENT_SCHEDULERS`.
      size: of the latents that it was trained on.
      guidance: the scale that the network takes as an input; None: it takes none.
      by_size: the times for each of several shapes of latents.
      scales: the range of scales that it was trained with; None: one.

    Returns:
      The contents of a scheduler_config.json, from which `recorded_times` reads the times, and
      `recorded_settings` the others.

    Raises:
      Refused: if the times are not decreasing or out of range, or the kind is unknown.
    """
    times = [float(t) for t in times]
    decreasing = all(a > b for a, b in itertools.pairwise(times))
    if not (times and decreasing and times[-1] > 0 and times[0] <= 1):
        raise Refused(
            f"student times {times}, expected decreasing numbers in (0, 1], 1 is noise; try "
            "1,0.75,0.5,0.25."
        )
    if kind not in FLOW_STUDENT_SCHEDULERS:
        raise Refused(
            f"scheduler={kind!r} of a student that predicts a flow, expected one of "
            f"{FLOW_STUDENT_SCHEDULERS}; choose one."
        )
    made = {
        "_class_name": _CLASSES[FLOW_STUDENT_SCHEDULERS.index(kind)],
        FLOW_TIMES: times,
        "num_train_timesteps": config.get("num_train_timesteps", _DEFAULTS["num_train_timesteps"]),
        "shift": 1.0,
        "shift_terminal": None,
        "use_dynamic_shifting": False,
    }
    made |= {"stochastic_sampling": True} if kind == "euler" else {}
    return made | recorded_as(size, guidance, by_size, scales)
