"""Teacher training: the objective, and a run that stops and goes on."""

import dataclasses
import functools
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.denoiser import Denoiser
from dmd2_jax.diffusion.schedules import edm
from dmd2_jax.families.sit import family as sit_family
from dmd2_jax.recipe.open import build_family, open_recipe
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.training import teacher as train_teacher
from dmd2_jax.training.teacher import compile_step, state_shardings, teacher_batch
from dmd2_jax.training.teacher_step import (
    TeacherConfig,
    TeacherState,
    init_teacher_state,
    teacher_loss,
    teacher_step,
)
from dmd2_jax.typing import Array, PyTree
from tests import tiny_unet
from tests.tiny import RECIPE, dmd2, get_config, results, teacher_run

CONFIG = TeacherConfig(lr=1e-2, warmup=0, ema_decay=0.9)


def x0(params: PyTree, x_t: Array, t: Array, cond: PyTree) -> Array:
    """The best linear denoiser of a normal distribution, times a learned gain."""
    variance = CONFIG.sigma_data**2
    shrink = variance / (variance + t**2)
    return params["gain"] * shrink[:, None] * x_t + 0.0 * params["bias"]


DENOISER = Denoiser(
    x0=x0,
    features=lambda *arguments: (),
    x0_and_features=lambda *arguments: (x0(*arguments), ()),
    schedule=edm(),
    null_cond=lambda cond: jax.tree.map(jnp.zeros_like, cond),
)
PARAMS = {"gain": jnp.float32(1.0), "bias": jnp.float32(0.0)}


def x0_with_key(params: PyTree, x_t: Array, t: Array, cond: PyTree, key: Array) -> Array:
    return x0(params, x_t, t, cond)


def loss_of(x_0: Array, key: Array, config: TeacherConfig = CONFIG) -> Array:
    loss, _ = teacher_loss(
        PARAMS, x_0, None, key, x0_fn=x0_with_key, denoiser=DENOISER, config=config
    )
    return loss


def step_with(state: TeacherState, x_0: Array, seed: int) -> tuple[TeacherState, dict]:
    return teacher_step(
        state,
        x_0,
        None,
        jax.random.key(seed),
        x0_fn=x0_with_key,
        denoiser=DENOISER,
        config=CONFIG,
    )


def test_teacher_loss_of_the_best_denoiser_is_one() -> None:
    # E|D - x_0|^2 = sigma^2 sd^2 / (sigma^2 + sd^2), which the weight turns into exactly 1.
    x_0 = CONFIG.sigma_data * jax.random.normal(jax.random.key(1), (20_000, 8))
    assert float(loss_of(x_0, jax.random.key(2))) == pytest.approx(1.0, abs=0.02)


def test_teacher_loss_equals_the_equation() -> None:
    x_0, key = jax.random.normal(jax.random.key(1), (5, 3)), jax.random.key(2)
    sigma = np.exp(-1.2 + 1.2 * np.asarray(jax.random.normal(stream_key(key, "sigma"), (5,))))
    noise = np.asarray(jax.random.normal(stream_key(key, "noise"), (5, 3)))
    s = sigma[:, None].astype(np.float64)
    error = 0.25 / (0.25 + s**2) * (np.asarray(x_0) + s * noise) - np.asarray(x_0)
    expected = np.mean((s**2 + 0.25) / (s * 0.5) ** 2 * error**2)
    assert float(loss_of(x_0, key)) == pytest.approx(expected, rel=1e-5)


def test_teacher_loss_drops_the_labels_it_should() -> None:
    seen = {}

    def spy(params: PyTree, x_t: Array, t: Array, cond: PyTree, key: Array) -> Array:
        seen["cond"] = cond
        return x_t

    x_0, cond = jnp.zeros((4000, 1)), jnp.ones((4000, 3))
    config = TeacherConfig(label_dropout=0.25)
    teacher_loss(PARAMS, x_0, cond, jax.random.key(0), x0_fn=spy, denoiser=DENOISER, config=config)
    kept = np.asarray(seen["cond"])
    assert set(kept.sum(axis=1)) == {0.0, 3.0}  # a label is dropped whole
    assert np.mean(kept[:, 0] == 0) == pytest.approx(0.25, abs=0.03)


def test_teacher_step_first_step_moves_by_the_learning_rate() -> None:
    # Adam's first step is lr * sign(gradient) where eps is small beside the gradient.
    x_0 = jax.random.normal(jax.random.key(3), (64, 4))
    state, metrics = step_with(init_teacher_state(PARAMS), x_0, seed=0)
    moved = abs(float(state.params["gain"]) - 1.0)
    assert moved == pytest.approx(CONFIG.lr, rel=1e-4)
    assert float(state.params["bias"]) == 0.0
    # n = 0: the average's decay is 1 / 10.
    assert abs(float(state.ema["gain"]) - 1.0) == pytest.approx(0.9 * moved, rel=1e-4)
    assert int(state.step) == 1
    assert int(metrics["skipped_updates"]) == 0


def test_teacher_step_takes_its_betas_from_the_config() -> None:
    config = dataclasses.replace(CONFIG, b1=0.5, b2=0.75)
    x_0, key = jax.random.normal(jax.random.key(3), (64, 4)), jax.random.key(0)
    options = {"x0_fn": x0_with_key, "denoiser": DENOISER, "config": config}
    g = jax.grad(lambda p: teacher_loss(p, x_0, None, key, **options)[0])(PARAMS)["gain"]
    state, _ = teacher_step(init_teacher_state(PARAMS), x_0, None, key, **options)
    assert float(state.opt_state.mu["gain"]) == pytest.approx(0.5 * float(g), rel=1e-5)
    assert float(state.opt_state.nu["gain"]) == pytest.approx(0.25 * float(g) ** 2, rel=1e-5)


def test_teacher_step_skips_gradients_that_are_not_finite() -> None:
    state, _ = step_with(init_teacher_state(PARAMS), jnp.ones((8, 4)), seed=0)
    after, metrics = step_with(state, jnp.full((8, 4), jnp.nan), seed=1)
    for name in ("params", "opt_state", "ema"):
        before, now = (jax.tree.leaves(getattr(s, name)) for s in (state, after))
        for a, b in zip(before, now, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert int(after.step) == 2
    assert int(metrics["skipped_updates"]) == 1


def test_train_teacher_writes_the_run_folder() -> None:
    names = {path.name for path in teacher_run().iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "data.json",
        "exported.json",
        "grid_0000004.png",
        "grid_0000006.png",
        "metrics.jsonl",
        "progress.gif",
        "speed.jsonl",
        "teacher.safetensors",
    }
    rows = read_metrics(teacher_run() / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(row["denoising_loss"]) for row in rows)


def test_train_teacher_draws_before_its_first_report_and_its_weights_say_they_are_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    often = [f"--config.log.{key}=2" for key in ("teacher_grid_every", "teacher_export_every")]
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={run}", "--config.log.every=4"]
    assert dmd2(*words, *often, "--config.teacher.steps=4") == 0
    assert len(list(run.glob("grid_*.png"))) == 2
    assert "cannot be drawn" not in caplog.text
    # As after a kill: the run is to be longer, and its weights are of step 4.
    record = json.loads((run / "config.json").read_text())
    record["config"]["teacher"]["steps"] = 6
    del record["seal"]  # by which an edited config is accepted
    (run / "config.json").write_text(json.dumps(record))
    assert dmd2("sample", f"--workdir={run}", f"--out={tmp_path / 'a.png'}", "--num=2") == 0
    assert f"the weights in {run} are of step 4 of 6: that run is not finished" in caplog.text
    caplog.clear()
    assert dmd2(*words, *often) == 0
    assert dmd2("sample", f"--workdir={run}", f"--out={tmp_path / 'b.png'}", "--num=2") == 0
    assert "not finished" not in caplog.text


def test_train_teacher_ends_with_an_animation_of_its_grids() -> None:
    with Image.open(teacher_run() / "progress.gif") as gif:
        assert gif.n_frames == 2


def test_train_teacher_profile_writes_a_trace_of_the_named_steps(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    words = ("train-teacher", f"--config={RECIPE}", "--config.teacher.steps=3", "--profile=1:1")
    assert dmd2(*words, f"--workdir={tmp_path}") == 0
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name") == "step"]
    assert {event["args"]["step_num"] for event in steps} == {"1"}
    assert "tensorboard --logdir" in capfd.readouterr().err


def test_train_teacher_weights_load_under_their_original_names() -> None:
    counted = {"image_channels": 1, "num_classes": 10}  # by the run, of its data
    family = sit_family.build(get_config().model.to_dict() | counted)
    params = family.load(teacher_run() / "teacher.safetensors")
    assert jax.tree.structure(params) == jax.tree.structure(family.param_shapes())


def test_train_teacher_resumed_equals_never_stopped(tmp_path: Path) -> None:
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={tmp_path}"]
    assert dmd2(*words, "--config.teacher.steps=3") == 0
    assert dmd2(*words) == 0
    for name in ("teacher.safetensors", "metrics.jsonl"):
        assert results(tmp_path)[name] == results(teacher_run())[name], name


class Begun(BaseException):
    """Ends a run as soon as its first state is made."""


def test_train_teacher_begins_with_a_state_that_is_split_and_has_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = get_config()
    changes = {"mesh.data": "2", "mesh.fsdp": "4"}
    apply_overrides(config, changes)
    begun = []

    def spied(state: TeacherState, places: TeacherState) -> None:
        begun.append((state, places))
        raise Begun

    monkeypatch.setattr("dmd2_jax.run.loop.put", spied)
    with pytest.raises(Begun):
        train_teacher.train(config, tmp_path / "run")
    ((state, places),) = begun
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True))
    assert [x.shape for x, place in pairs if x.size > 1 and x.sharding != place] == []
    assert any(not place.is_fully_replicated for _, place in pairs)
    family = build_family(config)
    expected = init_teacher_state(family.init(stream_key(jax.random.key(config.seed), "init")))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_teacher_state_follows_rules_from_the_networks_root() -> None:
    config = tiny_unet.get_config()
    # The second is for the GAN head, which the distillation with the same config has.
    rules = "'^params/map_layer1/kernel$=-:fsdp','^head_0/0/kernel$=-:-:-:fsdp'"
    changes = {"mesh.data": "4", "mesh.fsdp": "2", "model.model_channels": "32"}
    apply_overrides(config, changes | {"mesh.rules": rules})
    places = state_shardings(open_recipe(config, config.teacher.batch_size))
    for tree in (places.params, places.ema, places.opt_state.mu, places.opt_state.nu):
        assert tuple(tree["params"]["map_layer1"]["kernel"].spec) == (None, "fsdp")


def test_train_teacher_says_which_settings_are_the_distillations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    more = ("--config.mesh.offload=teacher", "--config.optim.moment_dtype=bfloat16")
    assert dmd2(*words, *more) == 0
    said = capsys.readouterr().err
    assert "mesh.offload=('teacher',) and optim.moment_dtype=bfloat16 apply to the distill" in said
    assert "config.mesh takes 1 of the 8 cpu devices here, the others idle" in said
    assert dmd2(*words, "--config.mesh.data=8") == 0
    said = capsys.readouterr().err
    assert "apply to the distillation" not in said
    assert "idle" not in said
    assert "devices: 8 cpu." in said


@functools.cache
def steps_on(data: int, fsdp: int, tensor: int) -> tuple[TeacherState, np.ndarray]:
    """Take five steps of the tiny U-Net on a mesh; return the state and the losses.

    Not of tokens: the gradient of a key's bias is zero but for rounding, which Adam makes a step.
    """
    config = tiny_unet.get_config()
    mesh = f"mesh.data={data} mesh.fsdp={fsdp} mesh.tensor={tensor} model.model_channels=16"
    apply_overrides(config, dict(word.split("=") for word in mesh.split()))
    recipe = open_recipe(config, config.teacher.batch_size)
    # The ADM's last layers begin at zero, which would hide most of the network.
    random = np.random.RandomState(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.1 * random.standard_normal(leaf.shape)),
        recipe.family.param_shapes(),
    )
    state = jax.device_put(init_teacher_state(params), state_shardings(recipe))
    lowered = compile_step(recipe).lower(state, *teacher_batch(recipe, 0), jax.random.key(0))
    step = lowered.compile()
    losses = []
    for i in range(5):
        state, metrics = step(state, *teacher_batch(recipe, i), jax.random.key(i))
        losses.append(metrics["denoising_loss"])
    return state, np.stack(losses)


@pytest.mark.parametrize("mesh", [(2, 4, 1), (2, 2, 2)])
def test_teacher_step_on_eight_devices_equals_one(mesh: tuple[int, int, int]) -> None:
    (alone, losses_alone), (spread, losses_spread) = steps_on(1, 1, 1), steps_on(*mesh)
    np.testing.assert_allclose(losses_spread, losses_alone, rtol=1e-5)
    for part in ("params", "ema"):
        expected, got = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(getattr(state, part))])
            for state in (alone, spread)
        )
        assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected), part


def test_teacher_state_is_split_and_stays_split() -> None:
    leaves = jax.tree.leaves(steps_on(2, 4, 1)[0])
    held = [leaf.addressable_shards[0].data.size for leaf in leaves]
    split = [(leaf, part) for leaf, part in zip(leaves, held, strict=True) if part < leaf.size]
    assert all(part * 4 == leaf.size for leaf, part in split)
    assert sum(leaf.size for leaf, _ in split) > 0.8 * sum(leaf.size for leaf in leaves)
