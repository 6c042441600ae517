"""The whole way with heights and widths that differ, and several of them, without torch.

One student of FLUX.1 of two shapes, whose shifts differ: cache, distil with a stop, sample, export.
And one of Qwen-Image, whose prompts have masks: a cycle of each shape.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.data.latents import Latents, load
from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.recipe.open import open_recipe
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.sampling.samplers import Sampler
from dmd2_jax.training.drawing import draw_shape
from dmd2_jax.training.shapes import shape_of_cycle
from dmd2_jax.weights.state_dict import read_safetensors
from tests.commands.test_flow_client import NO_GAN, RECIPE
from tests.data.images import png, write_folder
from tests.flow_pipelines import CAPTIONS, flow_pipeline
from tests.tiny import contents, dmd2, refused, scratch

SIZES = ((12, 16), (20, 10), (9, 11), (24, 12), (13, 16), (16, 8), (12, 17), (30, 40))
"""Height and width of the images."""

WIDE, TALL = (6, 8), (8, 4)
"""Of the latents: 12 and 8 tokens, of other shifts."""

SHAPES = "12x16,16x8"


@functools.cache
def pictures() -> Path:
    """Images with captions, of several sizes."""
    files = {}
    for i, (height, width) in enumerate(SIZES):
        pixels = np.random.RandomState(i).randint(0, 256, (height, width, 3)).astype(np.uint8)
        files |= {f"{i}.png": png(pixels), f"{i}.txt": CAPTIONS[i].encode()}
    return write_folder(scratch() / "pictures", files)


@functools.cache
def cache(shapes: str, kind: str = "flux") -> Path:
    out = scratch() / "cache"
    words = ["cache", f"--pipeline={flow_pipeline(kind)}", f"--images={pictures()}"]
    words += [f"--out={out}", f"--resolution={shapes}", "--enlarge", "--store=float32"]
    assert dmd2(*words) == 0
    return out


def source(shapes: str, resolution: object) -> Latents:
    return load(str(cache(shapes)), "all", resolution)


def words(run: Path, *more: str, kind: str = "flux") -> list[str]:
    pipeline = flow_pipeline(kind)
    line = ["distill", f"--config={RECIPE}", f"--workdir={run}"]
    line += [f"--config.data.path={cache(SHAPES, kind)}", "--config.data.test_fraction=0"]
    line += [f"--config.model.family={kind}", f"--config.model.pipeline={pipeline}"]
    line += ["--config.model.resolution=6x8,8x4", "--config.distill.student_steps=2"]
    return [*line, "--config.distill.batch_size=2", *more]


@functools.cache
def student_run() -> Path:
    """A student of four cycles."""
    run = scratch() / "run"
    assert dmd2(*words(run, *NO_GAN, "--config.distill.cycles=4")) == 0
    return run


@functools.cache
def exported() -> Path:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={student_run()}", f"--out={out}") == 0
    return out


def drawn(*more: object) -> np.ndarray:
    out = scratch() / "x.npz"
    assert dmd2("sample", *more, f"--prompt={CAPTIONS[3]}", f"--out={out}") == 0
    return np.load(out)["arr_0"][0]


def test_cache_gives_each_image_the_nearest_shape() -> None:
    both = source(SHAPES, (WIDE, TALL))
    assert list(both.buckets) == [WIDE, TALL]
    wide, tall = both.buckets[WIDE], both.buckets[TALL]
    texts = [CAPTIONS[i] for i, (height, width) in enumerate(SIZES) if height > 1.3 * width]
    assert tall.captions(np.arange(len(tall))) == texts and len(both) == len(SIZES)
    assert wide.examples(np.arange(2))["latent"].shape == (2, *WIDE, 6)
    assert tall.examples(np.arange(2))["latent"].shape == (2, *TALL, 6)
    assert both.identity == load(str(cache(SHAPES)), "all", (WIDE, TALL)).identity


def test_latents_of_a_shape_are_those_of_a_cache_of_that_shape_alone() -> None:
    alone = source("16x8", TALL)
    bucket = source(SHAPES, TALL)
    texts = alone.captions(np.arange(len(alone)))
    rows = [texts.index(text) for text in bucket.captions(np.arange(len(bucket)))]
    np.testing.assert_allclose(
        bucket.examples(np.arange(len(bucket)))["latent"],
        alone.examples(np.array(rows))["latent"],
        atol=1e-6,
    )


def test_examples_of_two_shapes_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="examples of several shapes, expected those of one"):
        source(SHAPES, (WIDE, TALL)).examples(np.arange(len(SIZES)))


def test_run_that_was_stopped_equals_one_that_was_not() -> None:
    whole, stopped = student_run(), scratch() / "run"
    assert dmd2(*words(stopped, *NO_GAN, "--config.distill.cycles=2")) == 0
    assert dmd2(*words(stopped, *NO_GAN, "--config.distill.cycles=4")) == 0
    for name, tensor in read_safetensors(whole / "student.safetensors").items():
        again = read_safetensors(stopped / "student.safetensors")[name]
        np.testing.assert_array_equal(tensor, again)
    rows, again = (read_metrics(run / "metrics.jsonl") for run in (whole, stopped))
    assert [row["critic_loss"] for row in rows] == [row["critic_loss"] for row in again]
    assert len(rows) == 4
    order = [shape_of_cycle((5, 3), 0, i)[0] for i in range(4)]
    assert set(order[:2]) == set(order[2:]) == {0, 1}  # both shapes on both sides of the stop


def test_run_with_a_gan_has_one_head_for_all_shapes() -> None:
    assert dmd2(*words(scratch() / "run", "--dry_run")) == 0


def test_grid_of_a_shape_has_its_name_and_its_images() -> None:
    recipe = open_recipe(open_run(student_run()).config, 2)
    bucket, folder = recipe.buckets[1], scratch()
    sampler = Sampler(lambda params, noise, cond: noise[0], 1, 1)
    picture = draw_shape(bucket, sampler, {}, folder, 7)
    assert picture.name == "shape_8x4_0000007.png" and contents(folder).keys() == {picture.name}
    width, height = Image.open(picture).size
    assert height > width  # of decoded images, each 16 x 8


def test_export_draws_each_shape_as_its_run_and_records_its_times() -> None:
    run, out = student_run(), exported()
    for shape in ("12x16", "16x8"):
        images = drawn(f"--workdir={run}", f"--shape={shape}")
        np.testing.assert_array_equal(images, drawn(f"--pipeline={out}", f"--shape={shape}"))
        assert "x".join(map(str, images.shape[:2])) == shape and images.std() > 5
    np.testing.assert_array_equal(drawn(f"--pipeline={out}"), drawn(f"--workdir={run}"))
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    wide, tall = recorded_times(scheduler, WIDE), recorded_times(scheduler, TALL)
    assert wide == recorded_times(scheduler) and wide[0] == tall[0] == 1.0
    # The shift of FLUX.1: e^mu, mu on the line through (256, 0.5) and (4096, 1.15).
    for times, tokens in ((wide, 12), (tall, 8)):
        shift = np.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256))
        np.testing.assert_allclose(times[1], shift * 0.5 / (1 + (shift - 1) * 0.5), atol=2e-3)
    assert wide[1] != tall[1]
    card = (out / "README.md").read_text()
    assert f"height=12, width=16, sigmas={list(wide)}" in card
    assert f"| 16 | 8 | {list(tall)} |" in card


def test_student_of_masked_prompts_learns_both_shapes_and_draws_each() -> None:
    run, out = scratch() / "run", scratch() / "student"
    assert dmd2(*words(run, *NO_GAN, kind="qwen_image")) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [shape_of_cycle((5, 3), 0, i)[0] for i in range(len(rows))] in ([0, 1], [1, 0])
    assert all(np.isfinite(row["generator_loss"] + row["critic_loss"]) for row in rows)
    assert dmd2("export", f"--workdir={run}", f"--out={out}") == 0
    for shape in ("12x16", "16x8"):
        images = drawn(f"--pipeline={out}", f"--shape={shape}")
        assert "x".join(map(str, images.shape[:2])) == shape and images.std() > 5
    np.testing.assert_array_equal(images, drawn(f"--workdir={run}", f"--shape={shape}"))


def test_plain_run_folder_says_all_shapes() -> None:
    config = json.loads((student_run() / "config.json").read_text())["config"]
    assert config["model"]["resolution"] == [list(WIDE), list(TALL)]
    assert config["distill"]["student_steps"] == 2  # each shape has times of its own


# --- bad input, before anything is compiled ---


def test_distill_refuses_shapes_that_the_cache_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    line = words(scratch() / "run", "--config.model.resolution=6x8,8x8", "--dry_run")
    said = refused(capsys, *line)
    assert "latents are 6x8,8x4 pixels wide, expected config.model.resolution=6x8,8" in said


def test_distill_names_the_shape_that_no_patch_divides(capsys: pytest.CaptureFixture[str]) -> None:
    line = words(scratch() / "run", "--config.model.resolution=6x7", "--dry_run")
    said = refused(capsys, *line)
    assert "the latents' sides are 6x7, expected a multiple of 2" in said and "to 6x8" in said


def test_cache_names_the_shape_that_no_patch_divides(capsys: pytest.CaptureFixture[str]) -> None:
    out, line = scratch() / "cache", ["cache", f"--pipeline={flow_pipeline('flux')}"]
    line += [f"--images={pictures()}", f"--out={out}", "--enlarge", "--dry_run"]
    said = refused(capsys, *line, "--resolution=12x16,16x10")
    assert "resolution=16x10 pixels are latents of 8x5" in said and "a multiple of 2" in said
    said = refused(capsys, *line, "--resolution=12x16,16x9")
    assert "resolution=16x9, expected a multiple of 2" in said and "try 16x8" in said
    assert not contents(out.parent)
