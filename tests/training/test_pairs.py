"""Teacher ODE pairs: `dmd2 make-pairs`, and what a distillation makes of them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.config.load import apply_overrides
from dmd2_jax.config.refused import Refused
from dmd2_jax.diffusion.samplers import sampling_times
from dmd2_jax.recipe.open import Recipe, open_recipe
from dmd2_jax.recipe.weights_file import teacher_file
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.seal import seal
from dmd2_jax.training.pairs import PairPool, make_pairs
from dmd2_jax.typing import Params
from tests.tiny import RECIPE, contents, distill_words, dmd2, get_config, refused, teacher_run

ALL = np.arange(20)


@functools.cache
def recipe() -> Recipe:
    config = get_config()
    # three files: 8, 8 and 4 pairs
    apply_overrides(config, {"teacher.weights": str(teacher_run()), "evaluate.batch_size": "8"})
    return open_recipe(config, config.distill.batch_size)


def teacher() -> Params:
    return recipe().family.load(teacher_file(recipe().config))


def made(folder: Path, params: Params | None = None, *, own: bool = True) -> PairPool:
    return make_pairs(recipe(), teacher() if params is None else params, folder, own=own)


def words(out: Path, *more: str) -> list[str | Path]:
    weights = f"--config.teacher.weights={teacher_run()}"
    return ["make-pairs", f"--config={RECIPE}", weights, f"--out={out}", *more]


def test_make_pairs_are_the_teachers_own_samples(tmp_path: Path) -> None:
    pairs, it = made(tmp_path / "pairs").read(ALL), recipe()
    assert pairs.noise.shape == pairs.x_0.shape == (20, 8, 8, 1)
    # Heun's method with two steps, by hand, on a pair of the last file.
    high, low, _ = sampling_times(it.family.denoiser.schedule, 2)
    cond = it.family.cond(pairs.labels[17:18])

    def slope(x: np.ndarray, t: float) -> np.ndarray:
        x_0 = it.family.denoiser.x0(teacher(), jnp.float32(x), jnp.float32([t]), cond)
        return (x - np.asarray(x_0)) / t

    x = pairs.noise[17:18] * high
    first = slope(x, high)
    euler = x + (low - high) * first
    x = x + (low - high) * 0.5 * (first + slope(euler, low))
    x = x - low * slope(x, low)
    np.testing.assert_allclose(pairs.x_0[17:18], x, rtol=1e-3, atol=1e-3)


def test_pairs_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    pool = made(tmp_path)
    chosen, whole = np.array([19, 0, 7, 8, 7]), pool.read(ALL)
    for some, every in zip(pool.read(chosen), whole, strict=True):
        np.testing.assert_array_equal(some, every[chosen])


def test_make_pairs_makes_only_what_is_missing_or_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path)
    before = contents(tmp_path)
    kept = (tmp_path / "x_0_00001.npy").stat().st_mtime_ns
    (tmp_path / "noise_00000.npy").unlink()
    damaged = tmp_path / "x_0_00002.npy"
    damaged.write_bytes(damaged.read_bytes()[:100])
    made(tmp_path)
    assert "x_0_00002.npy is damaged" in caplog.text
    assert contents(tmp_path) == before
    assert (tmp_path / "x_0_00001.npy").stat().st_mtime_ns == kept


def test_make_pairs_knows_its_own_on_other_devices_and_of_before_they_were_recorded(
    tmp_path: Path,
) -> None:
    made(tmp_path)
    index, before = tmp_path / "pairs.json", contents(tmp_path)
    record = json.loads(index.read_text())
    cpu = {"platform": "cpu", "kind": "cpu", "number": 1, "processes": 1}
    assert record.pop("devices") == cpu
    moved = seal(record | {"devices": {"platform": "tpu"}})
    del record["files"], record["seal"]
    for other in (record, moved):
        index.write_text(json.dumps(other))
        made(tmp_path, own=False)
        assert contents(tmp_path) == {**before, "pairs.json": index.read_bytes()}


def swapped(folder: Path) -> None:
    one, other = folder / "x_0_00000.npy", folder / "x_0_00001.npy"
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def zeros(folder: Path) -> None:
    np.save(folder / "noise_00001.npy", np.zeros((8, 8, 8, 1), np.float32))


def not_numbers(folder: Path) -> None:
    np.save(folder / "x_0_00002.npy", np.full((4, 8, 8, 1), np.nan, np.float32))


def flipped(folder: Path) -> None:
    content = bytearray((folder / "x_0_00000.npy").read_bytes())
    content[-3] ^= 1
    (folder / "x_0_00000.npy").write_bytes(content)


def other_digests(folder: Path) -> None:
    index = folder / "pairs.json"
    index.write_text(index.read_text().replace('"x_0_00000.npy": "', '"x_0_00000.npy": "0'))


@pytest.mark.parametrize("harm", [swapped, zeros, not_numbers, flipped, other_digests])
def test_damaged_pairs_are_refused_or_the_run_s_own_made_again(
    harm: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path)
    before = contents(tmp_path)
    harm(tmp_path)
    harmed = contents(tmp_path)
    with pytest.raises(Refused, match="damaged|made otherwise"):
        made(tmp_path, own=False)
    assert contents(tmp_path) == harmed
    made(tmp_path)
    assert "damaged" in caplog.text
    assert contents(tmp_path) == before


def test_make_pairs_replaces_its_own_run_s_of_another_teacher(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = made(tmp_path).read(ALL)
    pairs = pairs._replace(x_0=pairs.x_0.copy())
    other = made(tmp_path, jax.tree.map(lambda p: p * 1.01, teacher())).read(ALL)
    assert "are refused" in caplog.text
    np.testing.assert_array_equal(other.noise, pairs.noise)
    assert not np.array_equal(other.x_0, pairs.x_0)


def test_make_pairs_leaves_a_given_folder_of_another_teacher_alone(tmp_path: Path) -> None:
    made(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="pairs made otherwise, expected pairs of"):
        made(tmp_path, jax.tree.map(lambda p: p * 1.01, teacher()), own=False)
    assert contents(tmp_path) == before


def test_make_pairs_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "x_0_of_mine.npy").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds something else"):
        made(tmp_path)
    assert contents(tmp_path) == {"x_0_of_mine.npy": b"mine"}


def test_dry_run_refuses_what_the_command_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert "holds something else" in refused(capsys, *words(tmp_path, "--dry_run"))


def test_make_pairs_refuses_samples_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples 0\.\.7 are not finite"):
        made(tmp_path, jax.tree.map(lambda p: p * np.nan, teacher()))


def test_distill_takes_the_pairs_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "pairs", tmp_path / "run"
    assert dmd2(*words(out, "--dry_run")) == 0
    assert not out.exists()
    assert dmd2(*words(out)) == 0
    assert f"use them with: config.distill.pairs={out}" in capsys.readouterr().out
    regression = (
        "--config.distill.regression_weight=1.0",
        "--config.distill.dm_weight=None",
        "--config.distill.gan_generator_weight=None",
        "--config.distill.gan_critic_weight=None",
    )
    more = (f"--config.distill.pairs={out}", "--config.distill.cycles=1")
    assert dmd2(*distill_words(run, *regression, *more)) == 0
    assert not (run / "teacher_pairs").exists()
    (row,) = read_metrics(run / "metrics.jsonl")
    assert row["regression_loss"] == pytest.approx(row["generator_loss"])
    message = refused(
        capsys, *distill_words(tmp_path / "other", *regression, *more), "--config.seed=1"
    )
    assert "pairs made otherwise" in message
