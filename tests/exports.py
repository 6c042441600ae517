"""Students of tiny pipelines, and the words that export them."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dmd2_jax import families
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from dmd2_jax.sampling.samplers import sample_noise
from tests.pipelines import CAPTIONS, drawn, tiny_pipeline
from tests.tiny import scratch

TIMES = (999, 749, 499, 249)
FLOW_TIMES = (1.0, 0.9, 0.75, 0.5)
"""Of a student of a flow."""
PROMPTS = (CAPTIONS[3], CAPTIONS[18])


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
    flows = ("sd3", "flux", "flux2_klein", "z_image", "qwen_image")
    chosen = FLOW_TIMES if kind in flows else TIMES
    times = f"--times={','.join(map(str, chosen))}"
    base = [f"--weights={student_file(kind)}", f"--pipeline={tiny_pipeline(kind)}", times]
    return ["export", *base, f"--out={out}", *more]


def ours(folder: Path, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images of our sampler in [0, 1], and their noises [s, b, h, w, c]."""
    model = pipeline_model(folder, PromptSettings(**settings))
    images = drawn(model, PROMPTS)
    noises, shape = model.sampler.num_noises, model.family.image_shape
    noise = sample_noise(0, np.arange(len(PROMPTS)), noises, shape)
    return np.clip(images / 2 + 0.5, 0, 1), np.asarray(noise)
