"""dmd2_jax: distil a slow diffusion model into a one- or few-step generator.

`import dmd2_jax` needs jax, flax, optax, einops and jaxtyping only. Start with `DistillConfig`,
`Players`, `init_state` and `make_cycle`; the `dmd2` command is built from the same functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dmd2_jax.version import __version__

if TYPE_CHECKING:
    from dmd2_jax import diffusion, losses
    from dmd2_jax.adapters import from_function, from_linen, from_nnx
    from dmd2_jax.denoiser import Adapter, Denoiser, Discriminator, Schedule
    from dmd2_jax.diffusion import guided_x0, samplers, schedules
    from dmd2_jax.distill import (
        CycleBatch,
        CycleShardings,
        DistillConfig,
        Objective,
        Optimizers,
        Pairs,
        Players,
        Samples,
        TrainState,
        View,
        backward_simulation,
        critic_turn,
        dmd2,
        draw_cycle,
        generate,
        generator_turn,
        init_state,
        make_cycle,
        objectives,
        run_cycle,
    )
    from dmd2_jax.runtime.random import stream_key

_ROOMS = {
    "dmd2_jax.adapters": ("from_function", "from_linen", "from_nnx"),
    "dmd2_jax.denoiser": ("Adapter", "Denoiser", "Discriminator", "Schedule"),
    "dmd2_jax.diffusion": ("guided_x0",),
    "dmd2_jax.runtime.random": ("stream_key",),
}
"""Where what `dmd2_jax.distill` does not hold comes from."""

_MODULES = {
    "diffusion": "dmd2_jax.diffusion",
    "losses": "dmd2_jax.losses",
    "objectives": "dmd2_jax.distill.objectives",
    "samplers": "dmd2_jax.diffusion.samplers",
    "schedules": "dmd2_jax.diffusion.schedules",
}
"""Names that are modules."""

__all__ = [
    "Adapter",
    "CycleBatch",
    "CycleShardings",
    "Denoiser",
    "Discriminator",
    "DistillConfig",
    "Objective",
    "Optimizers",
    "Pairs",
    "Players",
    "Samples",
    "Schedule",
    "TrainState",
    "View",
    "__version__",
    "backward_simulation",
    "critic_turn",
    "diffusion",
    "dmd2",
    "draw_cycle",
    "from_function",
    "from_linen",
    "from_nnx",
    "generate",
    "generator_turn",
    "guided_x0",
    "init_state",
    "losses",
    "make_cycle",
    "objectives",
    "run_cycle",
    "samplers",
    "schedules",
    "stream_key",
]


def __getattr__(name: str) -> Any:
    """Import a name at its first use: who needs the config alone does not wait for jax."""
    if name not in __all__:
        raise AttributeError(f"module 'dmd2_jax' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    room = next((room for room, names in _ROOMS.items() if name in names), "dmd2_jax.distill")
    return getattr(importlib.import_module(room), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
