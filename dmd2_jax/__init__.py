"""dmd2_jax: distil a slow diffusion model into a one- or few-step generator.

`import dmd2_jax` needs jax, flax, optax and einops only. Start with `DistillConfig`, `Players`,
`init_state` and `make_cycle`; the `dmd2` command is built from the same functions.
"""

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
from dmd2_jax.version import __version__

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
