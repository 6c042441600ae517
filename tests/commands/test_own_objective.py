"""`dmd2 distill --config.distill.objectives=my_lab.my_loss`: a loss in a file of the user's."""

import sys
from pathlib import Path

import pytest

from dmd2_jax.run.metrics import read_metrics
from tests.tiny import distill_words, dmd2, refused

BRIGHTNESS = """
import dataclasses
import jax.numpy as jnp
from dmd2_jax import Objective


@dataclasses.dataclass(frozen=True)
class Brightness(Objective):
    name, player = "brightness", "generator"

    def value(self, view, draws):
        error = jnp.square(jnp.mean(view.x_0) - 0.5)
        return error, {"brightness_error": error}


def objective():
    return Brightness(weight=10.0)
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user's, in which dmd2 is started."""
    (tmp_path / "lab_of_losses").mkdir()
    (tmp_path / "lab_of_losses" / "brightness.py").write_text(BRIGHTNESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_distill_trains_with_an_objective_of_the_user_s_own(tmp_path: Path) -> None:
    own = "--config.distill.objectives=lab_of_losses.brightness"
    assert dmd2(*distill_words(tmp_path / "run", own)) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(row["brightness_error"] > 0 for row in rows)
    # It counts in what the generator minimises, ten times.
    row = rows[0]
    parts = row["dm_loss"] + 3e-3 * row["gan_generator_loss"] + 10 * row["brightness_error"]
    assert row["generator_loss"] == pytest.approx(parts, rel=1e-4)


def test_dry_run_refuses_an_objective_that_reads_what_it_does_not_declare(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "lab_of_losses" / "reads_real.py"
    file.write_text(BRIGHTNESS.replace("jnp.mean(view.x_0)", "jnp.mean(view.real.x_0)"))
    own = [f"--config.distill.gan_{it}_weight=None" for it in ("generator", "critic")]
    own += ["--config.distill.objectives=lab_of_losses.reads_real", "--dry_run"]
    message = refused(capsys, *distill_words(tmp_path / "run", *own))
    assert "objective 'brightness' reads real samples" in message
    assert "expected needs_real = True" in message


def test_dry_run_refuses_an_objective_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own = "--config.distill.objectives=lab_of_losses.brightest"
    message = refused(capsys, *distill_words(tmp_path / "run", own, "--dry_run"))
    assert "lab_of_losses.brightest" in message and "no module" in message


@pytest.mark.parametrize("made", ["None", "Brightness"])
def test_what_is_no_objective_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, made: str
) -> None:
    """A function without a return, or a class that was not called."""
    file = tmp_path / "lab_of_losses" / f"wrong_{made}.py"
    file.write_text(BRIGHTNESS.replace("return Brightness(weight=10.0)", f"return {made}"))
    own = f"--config.distill.objectives=lab_of_losses.wrong_{made}"
    message = refused(capsys, *distill_words(tmp_path / "run", own, "--dry_run"))
    assert f"wrong_{made}.objective() returned" in message and "an object of" in message
