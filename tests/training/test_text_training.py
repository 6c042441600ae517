"""Training on latents and prompts: the commands, and what they refuse."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dmd2_jax import data
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused
from dmd2_jax.data import labels_of
from dmd2_jax.families.published.configs import SCHEDULER
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.pictures.grids import image_grid
from dmd2_jax.recipe.distillation import batch_shapes, distill_config, state_shapes
from dmd2_jax.recipe.open import (
    Recipe,
    build_family,
    check,
    open_recipe,
    sample_labels,
    student_times,
)
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.sampling.samplers import (
    grid_labels,
    sample_images,
    sample_noise,
    student_sampler,
    teacher_sampler,
)
from dmd2_jax.text2image.image_latents import decode_latents
from dmd2_jax.training.batches import check_batch, cycle_batch, read_cycle
from dmd2_jax.training.pairs import PairPool, TeacherPairs, make_pairs
from tests import tiny
from tests.captioned import made
from tests.tiny import dmd2, refused, scratch

RECIPE = Path(__file__).resolve()
ROOT = RECIPE.parents[2]
SDXL = ("sdxl_four_step", "sdxl_four_step_lora", "sdxl_one_step", "sdxl_one_step_start")
FLOWS = ("sd35_medium", "sd35_large", "sd35_large_lora", "flux_dev", "flux2_klein", "z_image")
FLOWS += ("qwen_image",)
PUBLISHED = ("sd15", "sd15_gan", *SDXL, *FLOWS)
TIMES = (999, 499)

UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 2,
    "block_out_channels": [8],
    "cross_attention_dim": 64,
    "down_block_types": ["DownBlock2D"],  # the prompt is read by the block in the middle
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D"],
}


def get_config() -> ConfigDict:
    """Return a config that compiles and runs in seconds."""
    config = tiny.shared_config("stable_diffusion")
    config.name = "tiny_text"
    config.data.name = "latents"
    config.model.resolution = 8
    config.teacher.objective = "eps"
    config.teacher.label_dropout = 0.1
    config.distill.student_times = TIMES
    config.distill.guidance = 3.0
    config.distill.denoising_weight = "eps"
    config.distill.cycles = 2
    config.distill.shared_pass = True  # less to compile
    config.evaluate.batch_size = 10
    return config


@functools.cache
def pipeline() -> Path:
    """The pipeline of the captioned digits with another U-Net."""
    folder = scratch() / "pipeline"
    shutil.copytree(made() / "pipeline", folder)
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(UNET))
    family = stable_diffusion.build({"unet": UNET, "scheduler": SCHEDULER})
    weights = family.init(jax.random.key(0))
    family.save(weights, folder / "unet")
    return folder


@functools.cache
def photos() -> Path:
    """A cache of images with captions."""
    out = scratch() / "photos"
    words = (f"--images={made() / 'images'}", "--resolution=16", "--store=float32")
    assert dmd2("cache", f"--pipeline={pipeline()}", *words, f"--out={out}") == 0
    return out


@functools.cache
def prompts() -> Path:
    """A cache of prompts alone."""
    out = scratch() / "prompts"
    file = made() / "prompts_heldout.jsonl"
    words = (f"--prompts={file}", "--resolution=16", "--store=float32")
    assert dmd2("cache", f"--pipeline={pipeline()}", *words, f"--out={out}") == 0
    return out


def words(command: str, workdir: Path, *more: str, data: Path | None = None) -> list[str]:
    return [
        command,
        f"--config={RECIPE}",
        f"--workdir={workdir}",
        f"--config.model.pipeline={pipeline()}",
        f"--config.data.path={photos() if data is None else data}",
        *more,
    ]


def recipe(**overrides: str) -> Recipe:
    config = get_config()
    places = {"model.pipeline": str(pipeline()), "data.path": str(photos())}
    apply_overrides(
        config, places | {name.replace("__", "."): text for name, text in overrides.items()}
    )
    return open_recipe(config, config.distill.batch_size)


@functools.cache
def teacher_run() -> Path:
    workdir = scratch() / "teacher"
    assert dmd2(*words("train-teacher", workdir)) == 0
    return workdir


@functools.cache
def student_run() -> Path:
    workdir = scratch() / "student"
    weights = f"--config.teacher.weights={teacher_run()}"
    prompted = f"--config.data.prompts={prompts()}"
    assert dmd2(*words("distill", workdir, weights, prompted)) == 0
    return workdir


def test_train_teacher_learns_eps_from_latents() -> None:
    rows = read_metrics(teacher_run() / "metrics.jsonl")
    # eps has mean square 1, which a network that says nothing leaves
    assert all(0.3 < row["denoising_loss"] < 3 for row in rows)
    assert (teacher_run() / "grid_0000004.png").is_file()


def test_distill_trains_a_few_step_student_of_prompts() -> None:
    rows = read_metrics(student_run() / "metrics.jsonl")
    assert [row["generator_turns"] for row in rows] == [1, 2]
    for name in ("critic_loss", "dm_loss", "gan_generator_loss"):
        assert np.isfinite([row[name] for row in rows]).all(), name
    names = {path.name for path in student_run().iterdir()}
    assert {"student.safetensors", "student_ema_0.9.safetensors", "grid_0000002.png"} <= names


def test_distill_begins_with_the_pipelines_own_weights(tmp_path: Path) -> None:
    assert dmd2(*words("distill", tmp_path, "--dry_run")) == 0
    assert teacher_file(recipe().config) == pipeline()


def test_student_sampler_rolls_the_steps_out() -> None:
    it = recipe()
    student = it.family.load(student_run() / "student.safetensors")
    sampler = student_sampler(it.family, it.config)
    cond = it.family.cond(labels_of(it.prompts.examples(np.arange(2))))
    noise = sample_noise(0, np.arange(2), 2, it.family.image_shape)
    schedule, t = it.family.denoiser.schedule, jnp.full(2, 999)
    x_0 = it.family.denoiser.x0(student, noise[0], t, cond)
    t = jnp.full(2, 499)
    x_t = schedule.alpha(t[:1]) * x_0 + schedule.sigma(t[:1]) * noise[1]
    expected = it.family.denoiser.x0(student, x_t, t, cond)
    np.testing.assert_allclose(sampler.run(student, noise, cond), expected, rtol=1e-4, atol=1e-4)
    assert sampler.nfe == 2


def test_read_cycle_draws_the_students_prompts_in_an_order_of_their_own() -> None:
    batch = read_cycle(recipe(), 0, needs_real=True)
    assert batch.x.shape == (2, 8, 8, 8, 4)
    real, fake = batch.label["prompt_embeds"], batch.fake_label["prompt_embeds"]
    assert real.shape == fake.shape
    assert not np.array_equal(real, fake)
    everything = labels_of(recipe().dataset.examples(np.arange(len(recipe().dataset))))
    for row in fake.reshape(-1, *fake.shape[2:]):
        assert (everything["prompt_embeds"] == row).all(axis=(1, 2)).any()


def test_cycle_batch_has_the_shapes_that_the_program_takes() -> None:
    without = {
        "distill__gan_generator_weight": "None",
        "distill__gan_critic_weight": "None",
        "distill__regression_weight": "0.25",
        "distill__regression_pairs": "3",
    }
    for it in (recipe(), recipe(**without)):
        expected = batch_shapes(distill_config(it.config, it.family), it.family)
        noise = np.zeros((2, 8, 8, 4), np.float32)

        def read(numbers: np.ndarray, it: Recipe = it, noise: np.ndarray = noise) -> TeacherPairs:
            return TeacherPairs(*(np.repeat(noise, 4, 0),) * 2, sample_labels(it, numbers))

        pairs = PairPool(3, read) if expected.pairs is not None else None
        assert jax.eval_shape(lambda it=it, pairs=pairs: cycle_batch(it, 0, pairs)) == expected


def test_check_batch_refuses_data_of_other_arrays() -> None:
    it = recipe()
    other = batch_shapes(distill_config(it.config, it.family), it.family)
    prompt = jax.ShapeDtypeStruct((2, 8, 5, 64), jnp.float32)
    message = r"gives a cycle .*, expected .*prompt_embeds'\] \(2, 8, 5, 64\) for model.family"
    with pytest.raises(Refused, match=message):
        check_batch(it, other._replace(fake_cond={"prompt_embeds": prompt}))


def test_read_cycle_takes_the_real_prompts_where_told() -> None:
    batch = read_cycle(recipe(distill__fake_labels="real"), 0, needs_real=True)
    np.testing.assert_array_equal(batch.label["prompt_embeds"], batch.fake_label["prompt_embeds"])


def test_read_cycle_draws_from_the_cache_of_prompts() -> None:
    it = recipe(data__prompts=str(prompts()))
    fake = read_cycle(it, 0, needs_real=True).fake_label["prompt_embeds"]
    held_out = it.prompts.examples(np.arange(len(it.prompts)))["prompt_embeds"]
    for row in fake.reshape(-1, *fake.shape[2:]):
        assert (held_out == row).all(axis=(1, 2)).any()


def test_make_pairs_samples_the_prompts_by_ddim(tmp_path: Path) -> None:
    it = recipe(distill__regression_pairs="3", teacher__sampler_steps="2")
    teacher = it.family.load(pipeline())
    pairs = make_pairs(it, teacher, tmp_path, own=True).read(np.arange(3))
    cond = it.family.cond(pairs.labels)
    cond_0, denoiser = it.family.denoiser.null_cond(cond), it.family.denoiser
    x = jnp.asarray(pairs.noise)
    for t, after in ((999, 499), (499, None)):
        at = jnp.full(3, t)
        c, u = (denoiser.x0(teacher, x, at, one) for one in (cond, cond_0))
        x_0 = u + 3.0 * (c - u)
        alpha, sigma = (f(at[:1]) for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
        eps = (x - alpha * x_0) / sigma
        if after is None:
            x = x_0
        else:
            then = jnp.full(1, after)
            x = denoiser.schedule.alpha(then) * x_0 + denoiser.schedule.sigma(then) * eps
    np.testing.assert_allclose(pairs.x_0, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (
            "train-teacher",
            "teacher.objective=edm",
            "none of that objective's, expected eps",
        ),
        (
            "distill",
            "distill.student_times=1000,499",
            "has [1000], expected whole numbers in 0..999",
        ),
        ("distill", "model.pipeline=nowhere", "model.pipeline='nowhere' is no folder"),
        ("distill", "model.family=edm", "--config.model.pipeline is no key"),
        ("distill", "model.image_channels=3", "--config.model.image_channels is no key"),
        (
            "distill",
            "model.resolution=16",
            "8 pixels wide, expected config.model.resolution=16; set it to 8, or write a cache",
        ),
        ("distill", "data.prompts=nowhere", "config.data.prompts=nowhere: "),
        ("distill", "model.pipeline=sd15", "prompt_embeds of width 64, expected width 768"),
    ],
)
def test_training_refuses(
    command: str, more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words(command, tmp_path / "run", f"--config.{more}"))
    assert not (tmp_path / "run").exists()


def test_training_refuses_prompts_of_other_text_encoders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_hand, load = recipe().dataset, data.load

    def other(config: ConfigDict, split: str, resolution: int) -> Any:
        source = load(config, split, resolution)
        if config.path == str(prompts()):
            source.text_encoders = ("another",)
        return source

    monkeypatch.setattr(data, "load", other)
    with pytest.raises(ValueError, match="was made by the text encoders .'another',., expected"):
        recipe(data__prompts=str(prompts()))
    assert len(at_hand.text_encoders) == 1


def test_pairs_of_other_prompts_are_other_pairs() -> None:
    some, others = recipe(), recipe(data__prompts=str(prompts()))
    assert some.prompts.identity == recipe().prompts.identity != others.prompts.identity


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
def test_training_refuses_prompts_alone_where_images_are_needed(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, *words(command, tmp_path / "run", data=prompts()))
    assert "holds prompts alone, expected images with captions" in message


def test_distill_without_a_gan_needs_no_images(tmp_path: Path) -> None:
    without = (
        "--config.distill.gan_generator_weight=None",
        "--config.distill.gan_critic_weight=None",
    )
    assert dmd2(*words("distill", tmp_path, *without, "--dry_run", data=prompts())) == 0


def test_training_refuses_prompts_for_a_model_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (f"--config.data.prompts={prompts()}", f"--workdir={tmp_path / 'run'}")
    message = refused(capsys, "train-teacher", f"--config={tiny.RECIPE}", *more)
    assert "with data that have classes" in message


def test_prompts_are_refused_where_the_family_takes_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"--config={tiny.RECIPE}", "--config.data.name=latents", "--dry_run")
    words = (*words, f"--config.data.path={photos()}", f"--workdir={tmp_path / 'run'}")
    message = "comes with prompts, expected what model.family=sit"
    assert message in refused(capsys, "train-teacher", *words)


@pytest.mark.parametrize("name", ["sd15", "sdxl_four_step_lora"])
def test_recipe_fits_the_published_network(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    family = build_family(config)
    state = state_shapes(config, family)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.critic.params))
    assert count == {"sd15": 859_520_964, "sdxl": 2_567_463_684}[config.model.pipeline]


@pytest.mark.parametrize("name", FLOWS)
def test_recipe_of_a_flow_has_the_published_network_and_four_shifted_steps(name: str) -> None:
    config = load_config(name)
    check(config)
    family = build_family(config)
    # the tables of positions of SD 3.5 are among the weights, and not counted by its publisher
    counts = {
        "sd35_medium": 2_243_171_520 + 384**2 * 1536,
        "sd35_large": 8_056_627_520 + 192**2 * 2432,
        "flux_dev": 11_901_408_320,
        "klein_4b": 3_875_544_576,
        "z_image": 6_154_908_736,
        "qwen_image": 20_430_401_088,
    }
    sizes = [np.prod(shape) for shape in family.tensor_shapes().values()]
    assert (config.name, sum(map(int, sizes))) == (name, counts[config.model.pipeline])
    own = {"flux_dev": np.exp(1.15), "flux2_klein": np.exp(2.0233511571)}
    shift = (own | {"z_image": 3.0, "qwen_image": 3.0}).get(name, 5.0)
    expected = [shift * u / (1 + (shift - 1) * u) for u in (1, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(student_times(config, family.denoiser.schedule), expected, rtol=1e-6)


@pytest.mark.parametrize("name", [*PUBLISHED, "captioned_digits"])
def test_recipe_states_its_commands(name: str) -> None:
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert f"dmd2 distill --config=configs/{name}.py" in text
    assert "dmd2 sample" in text


@pytest.mark.parametrize("name", ["sd15_gan", "sdxl_four_step_lora", "sdxl_one_step_start"])
def test_recipe_can_be_started_shrunk(name: str, tmp_path: Path) -> None:
    shrunk = {
        "model.pipeline": pipeline(),
        "model.resolution": 8,
        "data.path": photos(),
        "data.prompts": prompts(),
        "teacher.weights": "",
        "distill.batch_size": 4,
        "distill.start_from": "",
        "mesh.data": 1,
    }
    given = [f"--config.{key}={value}" for key, value in shrunk.items()]
    assert dmd2("distill", f"--config={name}", f"--workdir={tmp_path}", *given, "--dry_run") == 0


def test_grid_of_a_training_run_shows_decoded_images() -> None:
    it = recipe()
    labels, rows, columns = grid_labels(it, rows=4)
    sampler = teacher_sampler(it.family, it.config)
    weights = it.family.load(teacher_run() / "teacher.safetensors")
    latents = sample_images(sampler, it.family, weights, labels, seed=it.config.seed, batch_size=10)
    vae, params = read_component(pipeline() / "vae", expected=("AutoencoderTiny",))
    expected = scratch() / "expected.png"
    images = decode_latents(vae.module, params, latents)
    image_grid(np.asarray(images), expected, rows=rows, cols=columns)
    drawn = np.asarray(Image.open(sorted(teacher_run().glob("grid_*.png"))[-1]), np.float32)
    np.testing.assert_allclose(drawn, np.asarray(Image.open(expected), np.float32), atol=2)
