"""Two hundred damaged checkpoints: each is noticed, or its damage does not reach what is read."""

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints
from dmd2_jax.typing import PyTree

DAMAGES = 200
EXTRA = {"examples_seen": 6400, "config": {"optim": {"lr": 0.003}}, "metrics": {"fid": 3.25}}


def make_state(seed: int) -> PyTree:
    weights = jax.random.normal(jax.random.key(seed), (24, 16))
    return {"w": weights, "count": jnp.int32(seed), "half": weights.astype(jnp.bfloat16)[0]}


def two_steps(directory: Path) -> Path:
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), EXTRA | {"step": step})
    return directory


def damage(folder: Path, dice: random.Random) -> str:
    """Flip one bit, or cut off the end, of one file below `folder`; every file alike often."""
    file = dice.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    if dice.random() < 0.25 or not content:
        content = content[: dice.randrange(max(1, len(content)))]
        what = f"cut to {len(content)} bytes"
    else:
        position, bit = dice.randrange(len(content)), dice.randrange(8)
        content[position] ^= 1 << bit
        what = f"bit {bit} of byte {position} flipped"
    file.write_bytes(content)
    return f"{file.relative_to(folder)} {what}"


def same(a: PyTree, b: PyTree) -> bool:
    return all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# Orbax leaves the futures of a failed read to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_hundred_damages_are_noticed_or_harmless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(2405_14867)
    source, copy = two_steps(tmp_path / "source"), tmp_path / "copy"
    template, wrong, noticed = make_state(0), [], 0
    for _ in range(DAMAGES):
        shutil.copytree(source, copy)
        what = damage(copy / "2", dice)
        caplog.clear()
        with Checkpoints(copy) as checkpoints, caplog.at_level("WARNING", logger="dmd2_jax"):
            state, extra, step = checkpoints.restore(template)
        fell_back = step == 1 and "checkpoint 2" in caplog.text and (copy / "damaged-2").is_dir()
        noticed += fell_back
        sound = same(state, make_state(step)) and extra == EXTRA | {"step": step}
        if not (sound and (fell_back or step == 2)):
            wrong.append(what)
        shutil.rmtree(copy)
    assert wrong == []
    # Both outcomes occur: many files are copies or notes that a restore does not read.
    assert DAMAGES // 10 < noticed < DAMAGES


@pytest.mark.parametrize("text", ['"examples_seen": 6400', '"fid": 3.25', '"lr": 0.003'])
def test_restore_notices_an_altered_extra(tmp_path: Path, text: str) -> None:
    directory = two_steps(tmp_path / "c")
    manifest = directory / "2" / "meta" / "metadata"
    content = manifest.read_text()
    assert text in content
    manifest.write_text(content.replace(text, text[:-1] + "1"))
    with (
        Checkpoints(directory, read_only=True) as checkpoints,
        pytest.raises(CheckpointError, match="does not match its own digest"),
    ):
        checkpoints.restore(make_state(0), step=2)
