"""Distillation as a run: its folder, its resumption, its batches and its pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.distill.objectives import DistributionMatching
from dmd2_jax.recipe import distillation
from dmd2_jax.recipe.distillation import build_players, distill_config, initial_state
from dmd2_jax.recipe.open import Recipe, build_family, open_recipe
from dmd2_jax.recipe.weights import starting_weights
from dmd2_jax.recipe.weights_file import weights_file
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.distributed import to_host
from dmd2_jax.runtime.random import stream_key
from dmd2_jax.training import student as train_student
from dmd2_jax.training.batches import cycle_batch, read_cycle
from tests.tiny import distill_words, dmd2, get_config, results, student_run, teacher_run


class Begun(BaseException):
    """Ends a run as soon as a part of it that is watched begins."""


def recipe(**overrides: str) -> Recipe:
    config = get_config()
    apply_overrides(config, {name.replace("__", "."): text for name, text in overrides.items()})
    return open_recipe(config, config.distill.batch_size)


def test_distill_writes_the_run_folder() -> None:
    names = {path.name for path in student_run().iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "data.json",
        "exported.json",
        "grid_0000004.png",
        "metrics.jsonl",
        "progress.gif",
        "scores_0000004.png",
        "speed.jsonl",
        "student.safetensors",
        "student_ema_0.9.safetensors",
    }
    rows = read_metrics(student_run() / "metrics.jsonl")
    assert [row["generator_turns"] for row in rows] == [1, 2, 3, 4]
    assert [row["critic_turns"] for row in rows] == [2, 4, 6, 8]


def test_distill_reports_every_sample_of_the_cycles_between_reports(tmp_path: Path) -> None:
    assert dmd2(*distill_words(tmp_path, "--config.log.every=4")) == 0
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    rows = read_metrics(student_run() / "metrics.jsonl")
    for name in ("logits_real_histogram", "logits_fake_histogram"):
        assert sum(row[name]) == 4 * 2 * 8  # cycles, critic turns, batch
        assert row[name] == [sum(counts) for counts in zip(*(r[name] for r in rows), strict=True)]
    assert row["generator_loss"] == rows[-1]["generator_loss"]
    assert len(row["dm_grad_norm_by_level"]) == len(row["critic_error_by_level"]) == 5


def test_monitoring_explains_every_metric() -> None:
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    for run in (student_run(), teacher_run()):
        for file in ("metrics.jsonl", "speed.jsonl"):
            names = {name for row in read_metrics(run / file) for name in row} - {"step"}
            assert names
            assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_distill_moves_the_student_away_from_the_teacher() -> None:
    teacher = load_file(teacher_run() / "teacher.safetensors")
    student = load_file(student_run() / "student.safetensors")
    average = load_file(student_run() / "student_ema_0.9.safetensors")
    assert teacher.keys() == student.keys() == average.keys()
    name = "final_layer.linear.weight"
    moved = np.abs(student[name] - teacher[name]).max()
    # Four AdamW steps of 1e-4: each moves a weight by the rate, give or take the weight decay.
    assert 1e-4 < moved < 6e-4
    assert not np.array_equal(average[name], student[name])


def test_distill_exports_between_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"student": student_run(), "teacher": teacher_run()}  # made as they are, before

    def stopped(*arguments: Any, **options: Any) -> Any:
        raise Begun

    monkeypatch.setattr(train_student, "draw_progress", stopped)
    with pytest.raises(Begun):  # at the first picture, that of the end
        dmd2(*distill_words(tmp_path, "--config.log.export_every=3"))
    assert not list(tmp_path.glob("*.png"))
    name = "final_layer.linear.weight"
    weights = load_file(tmp_path / "student.safetensors")[name]
    for kind, run in runs.items():
        assert not np.array_equal(weights, load_file(run / f"{kind}.safetensors")[name]), kind


def test_distill_resumed_equals_never_stopped(tmp_path: Path) -> None:
    assert dmd2(*distill_words(tmp_path, "--config.distill.cycles=2")) == 0
    assert dmd2(*distill_words(tmp_path)) == 0
    for name in ("student.safetensors", "student_ema_0.9.safetensors", "metrics.jsonl"):
        assert results(tmp_path)[name] == results(student_run())[name], name


@pytest.mark.slow
def test_distill_on_eight_devices_equals_one(tmp_path: Path) -> None:
    mesh = ("data=4", "fsdp=2", "rules='proj_out_1/kernel=-:fsdp'")
    more = ["--config.distill.cycles=1", *(f"--config.mesh.{words}" for words in mesh)]
    assert dmd2(*distill_words(tmp_path, *more)) == 0
    expected = read_metrics(student_run() / "metrics.jsonl")[0]
    (got,) = read_metrics(tmp_path / "metrics.jsonl")
    assert got.keys() == expected.keys()
    for name in ("generator_loss", "critic_loss", "generator_grad_norm", "critic_grad_norm"):
        assert got[name] == pytest.approx(expected[name], rel=1e-4), name


def test_distill_with_teacher_and_optimizer_on_the_host(tmp_path: Path) -> None:
    family = build_family(get_config())
    family.save(family.init(jax.random.key(0)), tmp_path / "teacher.safetensors")
    words = distill_words(
        tmp_path / "run",
        f"--config.teacher.weights={tmp_path}",
        "--config.mesh.offload=teacher,optimizer",
        "--config.distill.gan_generator_weight=None",
        "--config.distill.gan_critic_weight=None",
        "--config.distill.cycles=2",
    )
    assert dmd2(*words) == 0
    assert (tmp_path / "run" / "scores_0000002.png").is_file()
    start = load_file(tmp_path / "teacher.safetensors")
    student = load_file(tmp_path / "run" / "student.safetensors")
    moved = [np.abs(student[name] - start[name]).max() for name in start]
    assert 1e-5 < max(moved) < 1e-3  # two updates of at most 1e-4 an element, and decay


def test_distill_with_regression_keeps_its_pairs_for_the_resumed_run(tmp_path: Path) -> None:
    words = distill_words(
        tmp_path,
        "--config.distill.regression_weight=0.25",
        "--config.distill.gan_generator_weight=None",
        "--config.distill.gan_critic_weight=None",
    )
    assert dmd2(*words, "--config.distill.cycles=1") == 0
    pairs = tmp_path / "teacher_pairs" / "x_0_00000.npy"
    made = pairs.stat().st_mtime_ns
    assert dmd2(*words, "--config.distill.cycles=2") == 0
    assert pairs.stat().st_mtime_ns == made
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    assert all(np.isfinite(row["regression_loss"]) for row in rows)
    assert "gan_generator_loss" not in rows[0]


def test_initial_state_copies_the_teacher_to_both_players() -> None:
    it = recipe()
    teacher = it.family.load(weights_file(str(teacher_run()), "teacher.safetensors"))
    players, settings = build_players(it.config, it.family), distill_config(it.config, it.family)
    state = initial_state(players, settings, it.family, teacher, jax.random.key(0))
    for params in (state.generator.params, state.critic.params, *state.ema):
        for got, expected in zip(jax.tree.leaves(params), jax.tree.leaves(teacher), strict=True):
            np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@pytest.mark.parametrize(
    "given",
    [
        {"mesh__offload": "teacher,optimizer"},
        {"distill__lora_rank": "16", "distill__lora_critic": "True"},
    ],
)
def test_distill_begins_with_a_state_that_is_split_and_has_the_same_numbers(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = recipe(mesh__data="2", mesh__fsdp="4", **given)
    teacher = to_host(it.family.init(jax.random.key(1)))
    it.family.save(teacher, tmp_path / "teacher.safetensors")
    begun = []

    def spied(state: Any, places: Any) -> None:
        begun.append((state, places))
        raise Begun

    monkeypatch.setattr("dmd2_jax.run.loop.put", spied)
    it.config.unlock()
    it.config.teacher.weights = str(tmp_path)
    with pytest.raises(Begun):
        train_student.train(it.config, tmp_path / "run")
    ((state, places),) = begun
    assert jax.tree.map(lambda x: x.sharding, state) == places
    split = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    assert {4 * x.addressable_shards[0].data.size / x.size for x in split} == {1.0}

    players, settings = build_players(it.config, it.family), distill_config(it.config, it.family)
    key = stream_key(jax.random.key(it.config.seed), "discriminator")
    expected = initial_state(players, settings, it.family, teacher, key)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_distill_config_takes_every_value_of_the_same_name() -> None:
    it = recipe(distill__critic_turns="3", optim__critic_lr="0.5", distill__dm_range="0.1,0.9")
    settings = distill_config(it.config, it.family)
    assert (settings.critic_turns, settings.critic_lr) == (3, 0.5)
    assert settings.objectives[0] == DistributionMatching(range=(0.1, 0.9))
    assert settings.sample_shape == (8, 8, 1)
    assert settings.total_turns == 4 * 3


def test_cycle_batch_continues_one_stream_of_real_images() -> None:
    it = recipe()
    many = recipe(distill__critic_turns="4")
    first, second = (np.asarray(cycle_batch(it, i).real.x_0) for i in (0, 1))
    np.testing.assert_array_equal(
        np.concatenate([first, second]), np.asarray(cycle_batch(many, 0).real.x_0)
    )
    assert first.shape == (2, 8, 8, 8, 1)
    assert first.min() >= -1
    assert first.max() <= 1


def test_cycle_batch_from_an_example_continues_the_stream_with_another_batch_size() -> None:
    expected = np.asarray(cycle_batch(recipe(), 3).real.x_0).reshape(-1, 8, 8, 1)
    larger = cycle_batch(recipe(distill__batch_size="16"), 0, first_example=3 * 2 * 8)
    np.testing.assert_array_equal(np.asarray(larger.real.x_0[0]), expected)


def test_read_cycle_does_not_make_the_objectives_anew() -> None:
    """A user's `objective()` is called when a run is opened, and not with every batch."""
    it = recipe(distill__objectives="my_lab.that_is_gone")
    assert read_cycle(it, 0, needs_real=True).x is not None
    assert read_cycle(it, 0, needs_real=False).x is None


def test_cycle_batch_uniform_labels_do_not_follow_the_real_ones() -> None:
    batch = cycle_batch(recipe(distill__batch_size="1000"), 3)
    assert batch.fake_cond.shape == batch.real.cond.shape == (2, 1000)
    fake, real = (np.eye(10)[np.asarray(it)] for it in (batch.fake_cond, batch.real.cond))
    np.testing.assert_allclose(fake.sum(axis=(0, 1)) / 2000, 0.1, atol=0.03)
    assert np.mean((fake * real).sum(-1)) == pytest.approx(0.1, abs=0.03)


def test_cycle_batch_real_labels_are_the_real_images_own() -> None:
    batch = cycle_batch(recipe(distill__fake_labels="real"), 3)
    np.testing.assert_array_equal(np.asarray(batch.fake_cond), np.asarray(batch.real.cond))


def test_cycle_batch_reads_no_real_images_where_no_loss_needs_them() -> None:
    without = {"distill__gan_generator_weight": "None", "distill__gan_critic_weight": "None"}
    assert cycle_batch(recipe(**without), 0).real is None
    noised = {"distill__backward_simulation": "False", "distill__student_times": "1,0.5"}
    assert cycle_batch(recipe(**without, **noised), 0).real is not None


def test_config_json_holds_the_command_and_the_whole_config() -> None:
    record = json.loads((student_run() / "config.json").read_text())
    assert record["command"] == "distill"
    assert record["config"]["teacher"]["weights"] == str(teacher_run())
    assert record["config"]["optim"]["ema_decays"] == [0.9]


def test_starting_weights_are_those_of_the_run() -> None:
    it = recipe()
    generator, critic = starting_weights(str(student_run()), it.family)
    exported = it.family.load(student_run() / "student.safetensors")
    for got, expected in zip(jax.tree.leaves(generator), jax.tree.leaves(exported), strict=True):
        np.testing.assert_array_equal(got, expected)
    earlier, _ = starting_weights(f"{student_run()}@2", it.family)
    assert not np.array_equal(jax.tree.leaves(earlier)[0], jax.tree.leaves(generator)[0])
    players, settings = build_players(it.config, it.family), distill_config(it.config, it.family)
    state = initial_state(
        players, settings, it.family, exported, jax.random.key(0), (generator, critic)
    )
    for got, expected in zip(
        jax.tree.leaves(state.critic.params), jax.tree.leaves(critic), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda: teacher_run(), "is a run of `train-teacher`, expected one of `distill`"),
        (lambda: f"{student_run()}@3", "checkpoint 3 is not in"),
        (lambda: "nowhere", "no run in workdir nowhere"),
    ],
)
def test_distill_refuses_to_start_from(
    place: Callable[[], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = distill_words(tmp_path, f"--config.distill.start_from={place()}", "--dry_run")
    assert dmd2(*words) != 0
    assert message in capsys.readouterr().err


def test_distill_compiles_its_cycle_once_and_moves_nothing_between_cycles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, moved = [], []
    make, put = distillation.make_cycle, train_student.put_batch

    def guarded_cycle(*arguments: Any, **options: Any) -> Callable[..., Any]:
        cycle = make(*arguments, **options)
        made.append(cycle)

        def run(*inputs: Any) -> Any:
            # From the second call on, all that a cycle takes lies on the devices.
            with jax.transfer_guard("disallow" if cycle._cache_size() else "allow"):
                return cycle(*inputs)

        return run

    def counted_put(*arguments: Any) -> Any:
        moved.append(arguments)
        return put(*arguments)

    monkeypatch.setattr(distillation, "make_cycle", guarded_cycle)
    monkeypatch.setattr(train_student, "put_batch", counted_put)
    assert dmd2(*distill_words(tmp_path, "--config.distill.cycles=3")) == 0
    (cycle,) = made
    assert cycle._cache_size() == 1
    assert len(moved) == 3  # one batch a cycle, as bytes, is all that travels
