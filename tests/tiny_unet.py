"""The recipe of tests/tiny.py with a U-Net of EDM, for what only that or its levels show."""

import functools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.recipe.open import build_family
from tests.tiny import scratch, shared_config

RECIPE = Path(__file__).resolve()


def get_config() -> ConfigDict:
    """Return the config."""
    config = shared_config("edm")
    config.model.model_channels = 8
    config.model.channel_mult = (1,)
    config.model.attention_resolutions = ()
    return config


@functools.cache
def teacher() -> Path:
    """Return a folder with weights made up, of which none is zero; do not change it."""
    family, random = build_family(get_config()), np.random.RandomState(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * random.standard_normal(leaf.shape).astype(np.float32),
        family.param_shapes(),
    )
    folder = scratch()
    family.save(params, folder / "teacher.safetensors")
    return folder


def distill_words(workdir: Path, *more: str) -> list[str]:
    """Return the command line that distils that teacher into `workdir`."""
    words = ["distill", f"--config={RECIPE}", f"--workdir={workdir}"]
    return [*words, f"--config.teacher.weights={teacher()}", *more]
