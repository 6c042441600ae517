"""Every recipe in configs/: its network at full size, its programs traced, one step shrunk."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.data import ImageDataset
from dmd2_jax.recipe.distillation import (
    batch_shapes,
    distill_config,
    initial_state,
    open_distillation,
    trace,
)
from dmd2_jax.recipe.open import Recipe, build_family, check, sample_labels
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.training.batches import cycle_batch
from dmd2_jax.training.pairs import PairPool, TeacherPairs
from dmd2_jax.training.teacher import compile_step, state_shardings, teacher_batch
from dmd2_jax.training.teacher_step import init_teacher_state
from dmd2_jax.typing import PyTree

ROOT = Path(__file__).resolve().parents[1]
# those of text-to-image models are in test_text_training.py
NAMES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem != "common" and load_config(path.stem).model.family in ("edm", "sit")
)

SMALL = {
    "edm": {
        "model.model_channels": "8",
        "model.channel_mult": "1",
        "model.num_blocks": "1",
        "model.attention_resolutions": "()",
        "model.feature_resolutions": "()",
        "model.dropout": "0.1",
    },
    "sit": {"model.width": "16", "model.depth": "2", "model.heads": "2", "model.patch": "2"},
}
SHRUNK = {
    "model.resolution": "8",
    "model.image_channels": "1",
    "model.num_classes": "10",
    "distill.batch_size": "4",
    "distill.critic_turns": "2",
    "distill.gan_head_channels": "8",
    "teacher.batch_size": "4",
    "teacher.lr_schedule": "cosine",
    "optim.lr_schedule": "cosine",
    "optim.b1": "0.9",
    "optim.ema_decays": "(0.9, 0.99)",
}
"""Sizes, and what is only multiplied by; what a recipe chooses of the paths of the code stays."""


class Latents(data.SourceDefaults):
    """Random latents with classes, of a recipe whose data have more channels than images."""

    def __init__(self, size: int, channels: int, classes: int) -> None:
        self.name, self.resolution, self.channels, self.num_classes = "x", size, channels, classes

    def __len__(self) -> int:
        return 16

    def examples(self, indices: np.ndarray) -> data.Batch:
        shape = (len(indices), self.resolution, self.resolution, self.channels)
        latent = np.random.RandomState(0).normal(size=shape).astype(np.float32)
        return {"latent": latent, "label": (indices % self.num_classes).astype(np.int32)}


def recipe_of(config: ConfigDict) -> Recipe:
    """Return the recipe with random images in place of its files."""
    check(config)
    family = build_family(config)
    size, _, channels = family.image_shape
    classes = max(1, family.num_classes)
    if channels not in (1, 3):
        source = Latents(size, channels, classes)
        return Recipe(config, family, source, make_mesh({"data": 1}))
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (16, size, size, channels)).astype(np.uint8)
    labels = random.randint(0, classes, 16).astype(np.int32)
    dataset = ImageDataset(images, labels, classes, config.name)
    return Recipe(config, family, dataset, make_mesh({"data": 1}))


@pytest.fixture(params=NAMES)
def config(request: pytest.FixtureRequest) -> ConfigDict:
    return load_config(request.param)


def test_config_is_named_as_its_file(config: ConfigDict, request: pytest.FixtureRequest) -> None:
    assert config.name == request.node.callspec.params["config"]
    assert config.is_locked


def test_config_states_its_commands(request: pytest.FixtureRequest, config: ConfigDict) -> None:
    text = (ROOT / "configs" / f"{config.name}.py").read_text()
    for command in ("train-teacher", "distill", "evaluate"):
        assert f"dmd2 {command}" in text


def test_config_asks_of_data_what_they_take(config: ConfigDict) -> None:
    keys = ("test_fraction", "max_corrupt", "workers", "resize")
    options = data.Options(**{key: config.data[key] for key in keys})
    assert options.test_fraction == config.data.test_fraction


def test_config_matches_its_data(config: ConfigDict) -> None:
    if config.data.path and not Path(config.data.path).exists():
        pytest.skip(f"{config.data.path} is not on this machine")
    dataset = data.load(config.data, "test", config.model.resolution)
    family = build_family(config)
    expected = (family.image_shape[0], family.image_shape[-1], family.num_classes)
    assert (dataset.resolution, dataset.channels, dataset.num_classes) == expected


# What a program only multiplies by, counts to or begins with: recipes that differ in nothing else
# have one program, which is traced once, and run once where it is shrunk. A cycle calls networks
# and looks into none: each network is run in a teacher's step, and each way to distil in a cycle.
NUMBERS = {
    "distill": ("cycles", "start_from", "gan_generator_weight", "gan_critic_weight"),
    "optim": ("generator_lr", "critic_lr", "warmup"),
    "teacher": ("steps", "lr", "warmup", "ema_decay", "sampler_steps", "weights"),
}


def teacher_key(config: ConfigDict) -> str:
    """Return what the program of a teacher's step is made of."""
    return json.dumps([config.model.to_dict(), without_numbers(config, "teacher")])


def way_to_distil(config: ConfigDict) -> str:
    """Return what is done with the networks of a cycle, whatever they are."""
    parts = [without_numbers(config, name) for name in ("distill", "optim")]
    weights = (config.distill.gan_generator_weight, config.distill.gan_critic_weight)
    given = [weight is not None for weight in weights]
    return json.dumps([config.model.family, *parts, given])


def without_numbers(config: ConfigDict, name: str) -> dict[str, Any]:
    values = config[name].to_dict()
    return {key: value for key, value in values.items() if key not in NUMBERS[name]}


def once(done: set[str], key: str) -> bool:
    """Return whether no recipe before this one has the program."""
    is_new = key not in done
    done.add(key)
    return is_new


BUILT: set[str] = set()
TRACED: set[str] = set()
RUN: set[str] = set()


def test_config_builds_its_network_at_full_size(config: ConfigDict) -> None:
    family = build_family(config)
    if not once(BUILT, json.dumps(config.model.to_dict())):
        return  # as an earlier recipe's
    x_t = jax.ShapeDtypeStruct((2, *family.image_shape), np.float32)
    t, cond = jax.ShapeDtypeStruct((2,), np.float32), family.cond_shapes(2)
    x_0, features = jax.eval_shape(
        family.denoiser.x0_and_features, family.param_shapes(), x_t, t, cond
    )
    assert (x_0.shape, x_0.dtype) == (x_t.shape, np.float32)
    assert tuple(features) == family.feature_shapes(2)


def test_sit_xl_has_the_published_number_of_parameters() -> None:
    shapes = build_family(load_config("sit_xl_imagenet256")).tensor_shapes()
    # as DiT's program prints of DiT-XL/2, with its fixed table of 256 places
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + 256 * 1152 == 675_129_632


def test_config_traces_at_full_width(config: ConfigDict) -> None:
    # A block more is the same again, and networks are built in their full depth above.
    depth = "depth" if config.model.family == "sit" else "num_blocks"
    apply_overrides(config, {f"model.{depth}": "1"})
    recipe = recipe_of(config)
    if once(TRACED, f"teacher {teacher_key(config)}"):
        params = recipe.family.param_shapes()
        x_0, cond = jax.eval_shape(lambda: teacher_batch(recipe, 0))
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(init_teacher_state, params),
            state_shardings(recipe),
        )
        after, _ = jax.eval_shape(compile_step(recipe), state, x_0, cond, jax.random.key(0))
        assert after == state

    job = open_distillation(config, recipe.family, recipe.mesh)
    if job.players.discriminator is not None:
        features = recipe.family.feature_shapes(config.distill.batch_size)
        head = job.state.discriminator.params
        logits = jax.eval_shape(job.players.discriminator.logits, head, features)
        assert logits.shape == (config.distill.batch_size,)
    # What else a cycle does with networks, it does with those of any width: each way to distil is
    # run shrunk below. Here the types of a family's numbers are seen to stay what they were.
    if once(TRACED, f"cycle {config.model.family} {config.model.dtype}"):
        after, metrics = trace(job).out_info
        assert shapes_of(after) == shapes_of(job.state)
        assert metrics["critic_loss"].shape == (config.distill.critic_turns,)


def shapes_of(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_config_reads_batches_of_the_shapes_that_its_program_takes(config: ConfigDict) -> None:
    recipe, shape = recipe_of(config), (config.model.resolution,) * 2
    shape = (*shape, recipe.family.image_shape[-1])

    def read(numbers: np.ndarray) -> TeacherPairs:
        images = np.zeros((len(numbers), *shape), np.float32)
        return TeacherPairs(images, images, sample_labels(recipe, numbers))

    number, b = config.distill.regression_pairs, config.distill.batch_size
    pool = None if config.distill.regression_weight is None else PairPool(number, read)
    batch = jax.eval_shape(lambda: cycle_batch(recipe, 0, pool))
    assert batch == batch_shapes(distill_config(config, recipe.family), recipe.family)
    assert batch.real is None or batch.real.x_0.shape == (config.distill.critic_turns, b, *shape)


@pytest.mark.slow
def test_config_runs_one_step_shrunk(config: ConfigDict) -> None:
    # Half precision in the U-Net that compiles faster is enough: the step is the same around it.
    dtype = config.model.dtype if config.model.get("network") == "song" else "float32"
    small = SHRUNK | SMALL[config.model.family]
    apply_overrides(config, small | {"model.dtype": dtype})
    recipe = recipe_of(config)
    params = recipe.family.init(jax.random.key(0))
    if once(RUN, f"teacher {teacher_key(config)}"):
        step, state = compile_step(recipe), init_teacher_state(params)
        _, metrics = step(state, *teacher_batch(recipe, 0), jax.random.key(1))
        assert np.isfinite(metrics["denoising_loss"])
    if once(RUN, f"cycle {way_to_distil(config)}"):
        run_one_cycle(config, recipe, params)


def run_one_cycle(config: ConfigDict, recipe: Recipe, params: PyTree) -> None:
    job = open_distillation(config, recipe.family, recipe.mesh)
    key = jax.random.key(2)
    state = initial_state(job.players, job.settings, recipe.family, params, key)
    state, metrics = job.cycle(state, params, cycle_batch(recipe, 0), jax.random.key(3))
    assert int(state.step.critic) == config.distill.critic_turns
    assert int(metrics["skipped_updates"]) == 0
    for name, value in metrics.items():
        assert np.isfinite(value).all(), name
