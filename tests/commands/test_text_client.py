"""The whole way of a user: captions and a diffusers pipeline in, a student in diffusers out."""

import functools
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.run.metrics import read_metrics
from tests.exports import PROMPTS, ours
from tests.pipelines import diffusers_pipeline, lcm_images, photos, tiny_pipeline
from tests.tiny import dmd2, scratch
from tests.training.test_text_training import get_config as small_config

RECIPE = Path(__file__).resolve()
TIMES = (999, 749, 499, 249)


def get_config() -> ConfigDict:
    """Return a config that moves the weights of a tiny pipeline within two cycles."""
    config = small_config()
    config.distill.student_times = TIMES
    config.optim.generator_lr = 1e-2
    config.optim.critic_lr = 1e-2
    config.log.grid_every = 2
    return config


@functools.cache
def student_run(kind: str, *more: str) -> Path:
    """Distil the teacher of a tiny pipeline on photos with captions."""
    cache, run = scratch() / "cache", scratch() / "run"
    pipeline = tiny_pipeline(kind)
    made = dmd2("cache", f"--pipeline={pipeline}", f"--images={photos()}", f"--out={cache}")
    assert made == 0
    words = [f"--config={RECIPE}", f"--workdir={run}", f"--config.data.path={cache}"]
    assert dmd2("distill", *words, f"--config.model.pipeline={pipeline}", *more) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert all(np.isfinite(row["generator_loss"] + row["critic_loss"]) for row in rows)
    return run


@pytest.mark.parametrize("kind", ["sdxl", "sd15"])
def test_distilled_student_makes_our_images_in_diffusers(kind: str) -> None:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={student_run(kind)}", f"--out={out}") == 0
    card = (out / "README.md").read_text()
    assert "| cycles | 2 of 2, each" in card and f"Base: {tiny_pipeline(kind).name}." in card
    assert str(tiny_pipeline(kind)) not in card and "teacher's weights are of" not in card
    images, noise = ours(out)
    pipe = diffusers_pipeline(out)
    expected = lcm_images(pipe, PROMPTS, noise, timesteps=list(TIMES))
    assert np.abs(images - expected).max() <= 2e-3
    teacher = _as_student(diffusers_pipeline(tiny_pipeline(kind)), pipe)
    before = lcm_images(teacher, PROMPTS, noise, num_inference_steps=4)
    assert np.abs(expected - before).max() > 0.01  # it has learned something


def test_distilled_lora_makes_our_images_in_diffusers() -> None:
    pytest.importorskip("peft", reason="diffusers loads a LoRA by peft")
    rank = "--config.distill.lora_rank=4"
    run, out, whole = student_run("sdxl", rank), scratch() / "lora", scratch() / "merged"
    assert dmd2("export", f"--workdir={run}", f"--out={out}", "--lora") == 0
    assert dmd2("export", f"--workdir={run}", f"--out={whole}") == 0
    images, noise = ours(whole)
    pipe = _as_student(diffusers_pipeline(tiny_pipeline("sdxl")), diffusers_pipeline(whole))
    base = lcm_images(pipe, PROMPTS, noise, num_inference_steps=4)
    pipe.load_lora_weights(str(out))
    got = lcm_images(pipe, PROMPTS, noise, num_inference_steps=4)
    assert np.abs(images - got).max() <= 2e-3
    assert np.abs(base - got).max() > 0.01


def _as_student(pipe, student):
    """Give a pipeline the scheduler of a student, which chooses the student's four times."""
    pipe.scheduler = student.scheduler
    return pipe
