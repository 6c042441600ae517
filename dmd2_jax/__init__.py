"""dmd2_jax: distil a slow diffusion model into a one- or few-step generator.

`import dmd2_jax` needs jax, flax, optax and einops only. Start with `DistillConfig`, `Players`,
`init_state` and `make_cycle`; the `dmd2` command is built from the same functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dmd2_jax.version import __version__

if TYPE_CHECKING:
    from dmd2_jax.denoiser import Adapter, Denoiser, Discriminator, Schedule
    from dmd2_jax.distill import (
        CycleBatch,
        DistillConfig,
        Pairs,
        Players,
        Samples,
        TrainState,
        generate,
        init_state,
        make_cycle,
    )
    from dmd2_jax.runtime.random import stream_key

__all__ = [
    "Adapter",
    "CycleBatch",
    "Denoiser",
    "Discriminator",
    "DistillConfig",
    "Pairs",
    "Players",
    "Samples",
    "Schedule",
    "TrainState",
    "__version__",
    "generate",
    "init_state",
    "make_cycle",
    "stream_key",
]

_ROOMS = {
    "dmd2_jax.denoiser": ("Adapter", "Denoiser", "Discriminator", "Schedule"),
    "dmd2_jax.runtime.random": ("stream_key",),
}
"""Where what `dmd2_jax.distill` does not hold comes from."""


def __getattr__(name: str) -> Any:
    """Import a name at its first use: who needs the config alone does not wait for jax."""
    if name not in __all__:
        raise AttributeError(f"module 'dmd2_jax' has no attribute {name!r}")
    room = next((room for room, names in _ROOMS.items() if name in names), "dmd2_jax.distill")
    return getattr(importlib.import_module(room), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
