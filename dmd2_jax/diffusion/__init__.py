"""The diffusion floor: schedules, prediction types, guidance and the teacher's samplers."""

from dmd2_jax.diffusion.guidance import guide, guided_x0
from dmd2_jax.diffusion.predictions import from_x0, to_x0
from dmd2_jax.diffusion.samplers import ddim, edm_stochastic, euler_flow, heun, sampling_times
from dmd2_jax.diffusion.schedules import (
    add_noise,
    discrete_vp,
    edm,
    karras_sigmas,
    rectified_flow,
)

__all__ = [
    "add_noise",
    "ddim",
    "discrete_vp",
    "edm",
    "edm_stochastic",
    "euler_flow",
    "from_x0",
    "guide",
    "guided_x0",
    "heun",
    "karras_sigmas",
    "rectified_flow",
    "sampling_times",
    "to_x0",
]
