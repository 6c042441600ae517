"""Students of tiny pipelines, and the words that export them."""

import functools
from pathlib import Path

import jax
import numpy as np

from dmd2_jax import families
from tests.pipelines import tiny_pipeline
from tests.tiny import scratch

TIMES = (999, 749, 499, 249)
FLOW_TIMES = (1.0, 0.9, 0.75, 0.5)
"""Of a student of SD 3 or FLUX.1."""


@functools.cache
def student_file(kind: str) -> Path:
    """Weights of a student: those of the teacher, each a little changed."""
    family, params = families.read(tiny_pipeline(kind))
    random = np.random.RandomState(0)
    changed = jax.tree.map(
        lambda x: x * (1 + 0.3 * random.standard_normal(x.shape).astype(np.float32)), params
    )
    file = scratch() / "student.safetensors"
    family.save(changed, file)
    return file


def words(kind: str, out: Path, *more: str) -> list[object]:
    chosen = FLOW_TIMES if kind in ("sd3", "flux") else TIMES
    times = f"--times={','.join(map(str, chosen))}"
    base = [f"--weights={student_file(kind)}", f"--pipeline={tiny_pipeline(kind)}", times]
    return ["export", *base, f"--out={out}", *more]
