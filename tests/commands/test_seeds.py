"""Seeds at the end of their range, through every command that takes one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.sampling.samplers import sample_noise
from tests.tiny import RECIPE, dmd2, refused, student_run

LAST = 2**32 - 1


def test_last_seed_trains_distils_and_samples(tmp_path: Path) -> None:
    words = (f"--config={RECIPE}", f"--config.seed={LAST}")
    assert dmd2("train-teacher", *words, f"--workdir={tmp_path / 't'}") == 0
    words = (*words, f"--config.teacher.weights={tmp_path / 't'}")
    assert dmd2("distill", *words, f"--workdir={tmp_path / 's'}") == 0
    shown = []
    for seed in (LAST, 2**31, 0):
        out = tmp_path / f"{seed}.png"
        run = (f"--workdir={tmp_path / 's'}", f"--out={out}", "--num=4")
        assert dmd2("sample", *run, f"--seed={seed}") == 0
        shown.append(np.asarray(Image.open(out)))
    assert not any(np.array_equal(shown[i], shown[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("seed", [-1, LAST + 1])
def test_seeds_beyond_are_refused_at_once(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = f"seed={seed}, expected a whole number in 0..{LAST}"
    run = tmp_path / "run"
    words = (f"--config={RECIPE}", f"--workdir={run}", f"--config.seed={seed}")
    assert expected in refused(capsys, "distill", *words, "--dry_run")
    words = (f"--workdir={student_run()}", f"--seed={seed}", f"--out={run}.png")
    assert expected in refused(capsys, "sample", *words)
    assert list(tmp_path.iterdir()) == []


def test_sample_noise_of_every_seed_is_its_own() -> None:
    seeds = (0, 1, 2**31 - 1, 2**31, LAST)
    drawn = [np.asarray(sample_noise(seed, np.arange(2), 1, (3,))) for seed in seeds]
    assert len({array.tobytes() for array in drawn}) == len(seeds)
