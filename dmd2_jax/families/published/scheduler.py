"""A diffusers scheduler_config.json: the noise schedule it describes, and the times it samples at.

Every scheduler of Stable Diffusion (PNDM, Euler, DDIM, LCM, ...) holds the same few settings of the
diffusion that the network was trained on; the rest says how to sample.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.rules import GUIDANCE_RANGE, SIZES, holds
from dmd2_jax.config.sizes import EXPECTED, Size, say_sizes, sides, size_of
from dmd2_jax.denoiser import Schedule
from dmd2_jax.diffusion.schedules import discrete_vp
from dmd2_jax.networks.published_config import check_kinds

__all__ = [
    "FLOW_TIMES",
    "STUDENT_SCHEDULERS",
    "Diffusion",
    "ddim_times",
    "lcm_times",
    "read_scheduler",
    "recorded_as",
    "recorded_scales",
    "recorded_settings",
    "recorded_times",
    "student_scheduler",
]

STUDENT_SCHEDULERS = ("lcm", "ddim")
"""Kinds of `student_scheduler`."""

FLOW_TIMES = "_student_sigmas"
"""Where the scheduler of a flow's student records its times, which diffusers calls sigmas."""

_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_REQUIRED = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
_KNOWN = {
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "leading",
}
_LCM_GRID = 50
# What a student was trained with: setting -> entry.
_SETTINGS = {"guidance": "_student_guidance", "resolution": "_student_latent_side"}
_SCALES = "_student_guidance_range"
_BY_SIZE = "_student_times_by_size"
_TIMES = "_student_timesteps"  # diffusers keeps and ignores what begins with an underscore
_ZERO_SNR = "rescale_betas_zero_snr"
# What changes the diffusion or x_0, and the only values that do not.
_OFF = {
    "thresholding": (False, None),
    "timestep_type": ("discrete", None),
    "trained_betas": (None,),
}
# The classes that obey clip_sample, where the pipeline lets them.
_CLIPPING = (
    "DDIMScheduler",
    "DDPMScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)


class Diffusion(NamedTuple):
    """What a network was trained on.

    Attributes:
      schedule: int32 times 0 ... n - 1, 0 the least noisy.
      kind: what the network predicts: "eps", "v" or "x0".
    """

    schedule: Schedule
    kind: str

    @property
    def zero_snr(self) -> bool:
        """Whether nothing of x_0 is left at the last time."""
        return float(self.schedule.alpha(jnp.asarray(self.schedule.levels[-1:]))[0]) == 0.0


def read_scheduler(config: Mapping[str, Any], *, may_clip: bool = False) -> Diffusion:
    """Read the diffusion out of a scheduler's config.

    Args:
      config: what scheduler_config.json holds. A missing prediction_type means "epsilon", as in
        files older than the setting.
      may_clip: whether the pipeline lets its scheduler obey clip_sample, as SDXL's does;
        StableDiffusionPipeline switches it off.

    Returns:
      The schedule and the prediction type.

    Raises:
      ValueError: if settings are missing, or ask for a diffusion that is not built here.
    """
    name = config.get("_class_name", "scheduler")
    given = {key: value for key, value in config.items() if value is not None}
    check_kinds(given, _KNOWN, str(name))
    if missing := [key for key in _REQUIRED if config.get(key) is None]:
        raise Refused(
            f"config of a {name} lacks {', '.join(missing)}, expected the settings of a discrete "
            "diffusion with betas; use a model of SD 1.x, SD 2.x or SDXL."
        )
    problems = [
        f"{key}={config[key]!r}, expected {allowed[0]!r}"
        for key, allowed in _OFF.items()
        if key in config and config[key] not in allowed
    ]
    kind, betas = config.get("prediction_type") or "epsilon", config["beta_schedule"]
    if kind not in _KINDS:
        problems.append(f"prediction_type={kind!r}, expected one of {sorted(_KINDS)}")
    if betas not in _BETAS:
        problems.append(f"beta_schedule={betas!r}, expected one of {sorted(_BETAS)}")
    if may_clip and name in _CLIPPING and config.get("clip_sample"):
        problems.append("clip_sample=True, by which diffusers clips latents, expected False")
    if kind == "epsilon" and config.get(_ZERO_SNR):
        problems.append(
            f"{_ZERO_SNR}=True with prediction_type='epsilon', expected 'v_prediction' or 'sample' "
            "there: at the last time nothing of x_0 is left, and eps does not say what it was"
        )
    offset, levels = config.get("steps_offset") or 0, config["num_train_timesteps"]
    if type(offset) is not int or not 0 <= offset < levels:
        problems.append(
            f"steps_offset={offset!r}, expected a time of the schedule, 0..{levels - 1}"
        )
    if problems:
        # No setting is advised: a network is right with those that it was trained with alone.
        raise Refused(
            f"config of a {name} asks for what is not built here: {'; '.join(problems)}. Use "
            "another model, with the scheduler_config.json of its own release."
        )
    schedule = discrete_vp(
        betas=_BETAS[betas],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        num_levels=config["num_train_timesteps"],
        zero_terminal_snr=bool(config.get(_ZERO_SNR)),
    )
    return Diffusion(schedule, _KINDS[kind])


def ddim_times(config: Mapping[str, Any], num_steps: int) -> np.ndarray:
    """Return the grid that diffusers' DDIMScheduler of this config samples on.

    | timestep_spacing | times, decreasing                                        |
    |------------------|----------------------------------------------------------|
    | "leading"        | i floor(n / s) + steps_offset, i = s - 1 ... 0           |
    | "trailing"       | round(n - i n / s) - 1, i = 0 ... s - 1                  |
    | "linspace"       | round(i (n - 1) / (s - 1)), i = s - 1 ... 0              |

    Args:
      config: what scheduler_config.json holds.
      num_steps: number s of steps, in 1 ... n.

    Returns:
      [s + 1] float64 for `samplers.ddim`, whose end is time 0, or with set_alpha_to_one clean
      data (-1). A grid that already ends in 0 has no further step to there: [s].

    Raises:
      ValueError: if num_steps is out of range or the spacing unknown.

    Source: Lin et al. 2024 (arXiv 2305.08891), table 2; diffusers' documentation of the setting.
    """
    n = config["num_train_timesteps"]
    _check_steps(num_steps, n)
    spacing = config.get("timestep_spacing", "leading")
    if spacing == "leading":
        times = np.arange(num_steps)[::-1] * (n // num_steps) + (config.get("steps_offset") or 0)
        if times[0] >= n:
            raise Refused(
                f"steps_offset={config['steps_offset']} puts the first of {num_steps} steps at "
                f"{times[0]}, expected a time of the schedule, 0..{n - 1}; take other steps, or "
                "correct scheduler_config.json."
            )
    elif spacing == "trailing":
        times = np.round(n - np.arange(num_steps) * (n / num_steps)) - 1
    elif spacing == "linspace":
        times = np.round(np.linspace(0, n - 1, num_steps))[::-1]
    else:
        raise Refused(
            f"timestep_spacing={spacing!r}, expected 'leading', 'trailing' or 'linspace'; correct "
            "scheduler_config.json."
        )
    end = -1.0 if config.get("set_alpha_to_one", True) else 0.0
    times = times.astype(np.float64)
    return times if times[-1] == end else np.append(times, end)


def lcm_times(config: Mapping[str, Any], num_steps: int) -> np.ndarray:
    """Return the times that diffusers' LCMScheduler chooses when it is given none.

    Evenly from its training grid k, 2 k, ..., less 1, with k = n / original_inference_steps. A
    student of distribution matching has times of its own: give the scheduler those.

    Args:
      config: what scheduler_config.json holds; without original_inference_steps, 50.
      num_steps: number of steps, at most original_inference_steps.

    Returns:
      [num_steps] int, decreasing.

    Raises:
      ValueError: if num_steps is out of range.

    Source: Luo et al. 2023 (arXiv 2310.04378), section 4.3; diffusers' documentation.
    """
    grid = config.get("original_inference_steps", _LCM_GRID)
    _check_steps(num_steps, grid)
    descending = np.arange(grid, 0, -1) * (config["num_train_timesteps"] // grid) - 1
    return descending[np.floor(np.linspace(0, grid, num_steps, endpoint=False)).astype(int)]


def student_scheduler(
    config: Mapping[str, Any], times: Sequence[float], kind: str = "lcm"
) -> dict[str, Any]:
    """Return the config of a scheduler with which diffusers samples a few-step student.

    | kind   | class         | its steps are the student's, x_0 and then fresh noise              |
    |--------|---------------|--------------------------------------------------------------------|
    | "lcm"  | LCMScheduler  | given `timesteps`, and often by their number alone                 |
    | "ddim" | DDIMScheduler | of a one-step student; after the first step it adds no fresh noise |

    LCMScheduler chooses times from a grid of original_inference_steps. Where there is a grid from
    which it chooses the student's, it is given that one.

    Args:
      config: what the teacher's scheduler_config.json holds.
      times: the student's, decreasing.
      kind: a name of `STUDENT_SCHEDULERS`.

    Returns:
      The contents of a scheduler_config.json, from which `recorded_times` reads the times.

    Raises:
      ValueError: if the teacher's diffusion is not built here, or the times are not decreasing, out
        of range, or not DDIM's.
    """
    read_scheduler(config)
    whole, n = all(float(t).is_integer() for t in times), int(config["num_train_timesteps"])
    if not (whole and _decreasing(times) and times[-1] > 0 and times[0] < n):
        raise Refused(
            f"student times {list(times)}, expected decreasing numbers in 1..{n - 1}, whole "
            "ones; try 999,749,499,249."
        )
    steps = [int(t) for t in times]
    common = {key: config[key] for key in _REQUIRED} | {
        _TIMES: steps,
        "clip_sample": False,
        "prediction_type": config.get("prediction_type") or "epsilon",
        _ZERO_SNR: bool(config.get(_ZERO_SNR)),
        "set_alpha_to_one": True,
        "steps_offset": 1,  # which neither looks at, and pipelines of SD 1.x warn of any other
        "thresholding": False,
    }
    if kind == "lcm":
        return common | {
            "_class_name": "LCMScheduler",
            "original_inference_steps": _grid_of(steps, n),
            # Of the boundary condition, by which LCM's x_0 keeps some of x_t: none, then.
            "timestep_scaling": 1e4,
            "timestep_spacing": "leading",
        }
    if kind != "ddim":
        raise Refused(f"scheduler={kind!r}, expected one of {STUDENT_SCHEDULERS}; choose one.")
    made = common | {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
    grid = ddim_times(made, len(steps))[:-1].astype(int).tolist()
    if grid != steps:
        raise Refused(
            f"DDIMScheduler takes {len(steps)} steps at {grid}, expected the student's times "
            f"{steps}; choose LCMScheduler (lcm), which takes any."
        )
    return made


def recorded_times(config: Mapping[str, Any], size: Size = 0) -> tuple[float, ...] | None:
    """Return the times of a student that its export recorded; None: of no student.

    Args:
      config: what scheduler_config.json holds: of `student_scheduler`, or of a flow's.
      size: of the latents, where a student of several shapes has times for each; 0, or one that it
        was not trained on: those of the first.

    Returns:
      Whole numbers of a discrete diffusion; of a flow, numbers in (0, 1].

    Raises:
      ValueError: if they are no decreasing numbers.
    """
    name = FLOW_TIMES if FLOW_TIMES in config else _TIMES
    times = config.get(name)
    by_size = config.get(_BY_SIZE)
    if size and isinstance(by_size, Mapping):
        times = by_size.get(say_sizes(size), times)
    if times is None:
        return None
    if not (isinstance(times, list) and _are_times(times, config) and _decreasing(times)):
        raise Refused(
            f"{name}={times!r:.80}, expected decreasing times; export the student again, or "
            "correct scheduler_config.json."
        )
    return tuple(times)


def _are_times(times: Sequence[Any], config: Mapping[str, Any]) -> bool:
    if FLOW_TIMES in config:
        return all(type(t) in (int, float) and 0 < t <= 1 for t in times)
    return all(type(t) is int and 0 <= t < config["num_train_timesteps"] for t in times)


def _decreasing(times: Sequence[float]) -> bool:
    return bool(times) and all(a > b for a, b in itertools.pairwise(times))


def _grid_of(times: list[int], num_levels: int) -> int:
    """Return the original_inference_steps of which these times are chosen, or the default."""
    for grid in (_LCM_GRID, *range(len(times), num_levels + 1)):
        if len(times) > grid:
            continue
        settings = {"num_train_timesteps": num_levels, "original_inference_steps": grid}
        if lcm_times(settings, len(times)).tolist() == times:
            return grid
    return _LCM_GRID


def _check_steps(num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        raise Refused(
            f"num_steps={num_steps} must be in 1..{most}, the times to choose from; try "
            f"{min(most, 50)}."
        )


def recorded_as(
    size: Size,
    guidance: float | None = None,
    times: Mapping[Size, Sequence[float]] | None = None,
    scales: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the entries of a scheduler_config.json that `recorded_settings` reads.

    Args:
      size: of the latents that a student was trained on.
      guidance: the scale that its network takes as an input; None: it takes none.
      times: of a student of several shapes, for each; `recorded_times` reads them.
      scales: the lowest and the highest scale that it was trained with, where it has a range;
        `recorded_scales` reads them.
    """
    entries: dict[str, Any] = {_SETTINGS["resolution"]: size}
    if times and len(times) > 1:
        entries[_BY_SIZE] = {say_sizes(size): list(each) for size, each in times.items()}
    if scales:
        entries[_SCALES] = [float(end) for end in scales]
    return entries | ({} if guidance is None else {_SETTINGS["guidance"]: float(guidance)})


def recorded_scales(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the range of guidance scales that a student takes; None: its export recorded none.

    Args:
      config: what scheduler_config.json holds.

    Raises:
      Refused: if it is no range.
    """
    if _SCALES not in config:
        return None
    ends = config[_SCALES]
    numbers = isinstance(ends, list) and all(type(end) in (int, float) for end in ends)
    if not (numbers and ends and holds(GUIDANCE_RANGE.holds, ends)):
        raise Refused(
            f"{_SCALES}={ends!r:.80}, expected {GUIDANCE_RANGE.expected}; export the student "
            "again, or correct scheduler_config.json."
        )
    return (float(ends[0]), float(ends[1]))


def recorded_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an export recorded of a student's settings, by their names in `config.model`.

    Args:
      config: what scheduler_config.json holds.

    Returns:
      resolution, the size of its latents; guidance, the scale that the network takes as an input,
      where it takes one. {}: it is of no student.

    Raises:
      Refused: if one is out of range.
    """
    found = {key: config[entry] for key, entry in _SETTINGS.items() if entry in config}
    scale = found.get("guidance", 0.0)
    fits = type(scale) in (int, float) and 0 <= scale < math.inf
    if not fits or not holds(SIZES.holds, found.get("resolution", 1)):
        raise Refused(
            f"{found!r:.80} recorded of a student, expected a guidance of 0 or more and for the "
            f"side {EXPECTED}; export the student again, or correct scheduler_config.json."
        )
    if "resolution" in found:
        found["resolution"] = size_of(*sides(found["resolution"]))
    return found
