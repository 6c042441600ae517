"""Students of tiny Stable Diffusion pipelines, and the words that export them."""

import functools
from pathlib import Path

import jax
import numpy as np

from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from tests.pipelines import tiny_pipeline
from tests.tiny import scratch

TIMES = (999, 749, 499, 249)


@functools.cache
def student_file(kind: str) -> Path:
    """Weights of a student: those of the teacher, each a little changed."""
    family, params = stable_diffusion.read(tiny_pipeline(kind))
    random = np.random.RandomState(0)
    changed = jax.tree.map(
        lambda x: x * (1 + 0.3 * random.standard_normal(x.shape).astype(np.float32)), params
    )
    file = scratch() / "student.safetensors"
    family.save(changed, file)
    return file


def words(kind: str, out: Path, *more: str) -> list[object]:
    times = f"--times={','.join(map(str, TIMES))}"
    base = [f"--weights={student_file(kind)}", f"--pipeline={tiny_pipeline(kind)}", times]
    return ["export", *base, f"--out={out}", *more]
