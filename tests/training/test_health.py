"""A student that dies is told from one that is well, by its reports."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.training import health
from dmd2_jax.training.health import Health, real_statistics
from tests.tiny import distill_words, dmd2, student_run

GOOD = {
    "generated_mean": -0.39,
    "real_mean": -0.39,
    "generated_std": 0.75,
    "real_std": 0.75,
    "generated_saturation": 0.33,
    "real_saturation": 0.58,
    "denoising_loss": 0.64,
    "gan_critic_loss": 1.33,
}
BLACK = {"generated_mean": -0.79, "real_mean": -0.17, "real_std": 0.5, "generated_std": 0.4}


def judged(values: dict[int, dict], *, total: int = 300, **options: object) -> dict[int, dict]:
    """Return what is found at each report, GOOD but for what is given from a step on."""
    it = Health(total=total, every=10, **options)
    found, row = {}, dict(GOOD)
    for step in range(10, total + 1, 10):
        row |= values.get(step, {})
        if got := it.report(step, row):
            found[step] = got
    return found


def test_a_healthy_run_is_never_warned() -> None:
    random = np.random.RandomState(0)
    noisy = {
        step: {name: value + 0.05 * random.standard_normal() for name, value in GOOD.items()}
        for step in range(10, 301, 10)
    }
    # At first the samples are blurred copies of the mean.
    early = {step: {"generated_std": 0.2 + step / 200} for step in range(10, 60, 10)}
    assert judged({step: row | early.get(step, {}) for step, row in noisy.items()}) == {}


# Means, then deviations, at the ten reports of the two runs on photographs of docs/monitoring.md.
REAL = (
    (-0.34, -0.28, -0.30, -0.33, -0.29, -0.33, -0.35, -0.36, -0.29, -0.34),
    (0.54, 0.57, 0.56, 0.59, 0.60, 0.57, 0.58, 0.54, 0.57, 0.60),
)
ONE_STEP = (
    (-0.42, -0.38, -0.34, -0.42, -0.17, -0.35, -0.17, -0.53, -0.30, -0.39),
    (0.48, 0.61, 0.53, 0.64, 0.70, 0.58, 0.56, 0.49, 0.52, 0.56),
)
TWO_STEPS = (
    (-0.00, -0.04, -0.21, -0.46, -0.05, -0.71, -0.63, -0.72, -0.56, -0.68),
    (0.58, 0.57, 0.62, 0.69, 0.67, 0.23, 0.26, 0.26, 0.29, 0.28),
)


def test_a_short_run_that_turned_black_is_warned_before_it_ends() -> None:
    def found(figures: tuple[tuple[float, ...], ...]) -> dict[int, dict]:
        rows = {
            step: {
                "generated_mean": mean,
                "generated_std": std,
                "real_mean": real_mean,
                "real_std": real_std,
            }
            for step, mean, std, real_mean, real_std in zip(
                range(10, 101, 10), *figures, *REAL, strict=True
            )
        }
        return judged(rows, total=100)

    assert found(ONE_STEP) == {}
    warned = found(TWO_STEPS)
    assert list(warned) == [80, 90, 100]
    assert warned[80]["warning_std"] == pytest.approx(2.25, abs=0.05)


def test_nearly_black_samples_are_warned_of_while_they_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        found = judged({60: BLACK, 200: GOOD})
    assert min(found) == 100  # five of eight reports are black
    assert max(found) < 250
    assert found[150]["warning_mean"] == pytest.approx(0.62 / 0.5)
    said = [record.getMessage() for record in caplog.records if "generated_mean" in record.message]
    assert len(said) == 1
    assert "cycle 100: the student may be dying" in said[0]
    assert "generator_lr" in said[0]


@pytest.mark.parametrize(
    ("values", "name", "value"),
    [
        ({"generated_std": 0.25}, "std", 3.0),
        ({"generated_std": 1.5}, "std", 2.0),
        ({"generated_saturation": 0.88}, "saturation", 0.3),
        ({"denoising_loss": 1.6}, "critic", 2.5),
        ({"precision": 0.9, "recall": 0.02}, "recall", 0.02),
        ({"gan_critic_loss": 0.05}, "discriminator", 0.05),
    ],
)
def test_each_sign_has_its_warning(values: dict, name: str, value: float) -> None:
    found = judged({150: values})
    assert found[300] == {f"warning_{name}": pytest.approx(value)}
    assert min(found) > 150


def test_recall_that_is_measured_between_two_reports_counts_at_the_next() -> None:
    it = Health(total=300, every=10)
    for step in range(5, 301, 5):
        measured = {"precision": 0.9, "recall": 0.02} if step in (155, 205) else {}
        if found := it.report(step, GOOD | measured):
            break
    assert (step, found) == (210, {"warning_recall": pytest.approx(0.02)})


def test_what_the_start_has_too_counts_later() -> None:
    blurred = {"generated_std": 0.3, "gan_critic_loss": 0.1}
    found = judged({10: blurred}, total=1000)
    assert min(found) == 270  # the eighth report from a fifth of the run on
    assert found[270].keys() == {"warning_std", "warning_discriminator"}


def test_saturation_of_latents_means_nothing() -> None:
    assert judged({100: {"generated_saturation": 0.9}}, latents=True) == {}


def test_reports_without_real_samples_are_held_against_the_data() -> None:
    real = {name: GOOD[name] for name in ("real_mean", "real_std", "real_saturation")}
    it = Health(total=300, every=10, real=real)
    for step in range(10, 301, 10):
        found = it.report(step, {"generated_mean": -0.9, "generated_std": 0.75})
    assert found == {"warning_mean": pytest.approx(0.51 / 0.75)}


def test_a_resumed_run_judges_as_one_that_was_never_stopped() -> None:
    whole, resumed = (Health(total=300, every=10) for _ in range(2))
    random = np.random.RandomState(1)
    rows = [
        {"step": step, **GOOD, "denoising_loss": 1.0 + random.rand() + 3 * (step > 200)}
        for step in range(10, 301, 10)
    ]
    found = [whole.report(row["step"], row) for row in rows]
    resumed.replay(rows[:15])
    assert resumed.report(155, BLACK) == found[14]  # at a stop, out of turn: counts for nothing
    assert [resumed.report(row["step"], row) for row in rows[15:]] == found[15:]
    assert found[-1]


def test_real_statistics_are_those_of_the_images() -> None:
    class Two:
        def __len__(self) -> int:
            return 2

        def examples(self, places: np.ndarray) -> dict:
            assert list(places) == [0, 1]
            return {"image": np.array([[0, 255], [0, 0]], np.uint8)[..., None, None]}

    assert real_statistics(Two()) == {
        "real_mean": -0.5,
        "real_std": pytest.approx(0.75**0.5),
        "real_saturation": 1.0,
    }


def test_distill_warns_in_its_report_and_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(student_run(), run)
    monkeypatch.setattr(health, "WINDOW", 4)  # the run's four reports, and a limit below them
    rule = health.RULES["mean"]._replace(limit=1e-9)
    monkeypatch.setattr(health, "RULES", {**health.RULES, "mean": rule})
    assert dmd2(*distill_words(run, "--config.distill.cycles=5")) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "warning_mean" in row] == [5]
    assert "WARNING mean" in capsys.readouterr().err  # the progress line
    assert dmd2("report", f"--workdir={run}", f"--out={page}") == 0
    assert "the student may be dying" in page.read_text()
    before = json.loads((student_run() / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows[3] == before


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        (
            {"guidance": 3.0, "guidance_range": ()},
            "a GAN) or config.distill.guidance.",
        ),
        (
            {"guidance": None, "guidance_range": (1, 4)},
            "a GAN) or the upper end of config.distill.guidance_range.",
        ),
        ({"guidance": None}, "lower config.distill.gan_generator_weight (where there is a GAN)."),
    ],
)
def test_the_remedy_names_the_guidance_that_the_run_has(distill: dict, said: str) -> None:
    assert health.RULES["saturation"].said(0.3, health.guidance_key(distill)).endswith(said)
