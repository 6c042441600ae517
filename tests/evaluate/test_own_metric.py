"""A metric of the user's own: a module outside the package, by its dotted name."""

import json
import re
from pathlib import Path

import pytest

from dmd2_jax import metrics
from dmd2_jax.commands.ablate.rows import load_ablation
from dmd2_jax.evaluate.table import metrics_table
from dmd2_jax.metrics.contract.figures import Figure, from_plain
from tests.data.images import picture, png, write_folder
from tests.evaluate.test_evaluate import means
from tests.tiny import RECIPE, dmd2, refused

__all__ = ["means"]  # a fixture

SPREAD = '''
"""How far the features of the samples lie apart."""

from dmd2_jax.metrics.contract.figures import Figure

REAL, FAKE = (), ("features",)
FIGURES = {"spread": Figure("spread of mine", more_is_better=True, form="{:.1f}")}


def compute(real, fake):
    return {"spread": 7.25, "spread_std": 0.5, "spread_hidden": 3.0}


def check_count(count, dimension, side):
    if count < 3:
        raise ValueError(f"{count} {side} samples, expected 3; make more.")
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a metric, in a folder that Python looks in."""
    folder = tmp_path / "own" / f"lab_{tmp_path.name}"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "spread.py").write_text(SPREAD)
    (folder / "nothing.py").write_text('"""Nothing."""\nREAL = FAKE = ()\n')
    monkeypatch.syspath_prepend(tmp_path / "own")
    return folder.name


def words(means: str, folder: Path, out: Path, *names: str) -> list[str]:
    images = [f"--images={folder}", f"--reference={folder}", f"--out={out}"]
    return ["evaluate", *images, "--features=inception", means, f"--metrics={','.join(names)}"]


def test_evaluate_measures_by_a_metric_outside_the_package(
    lab: str, means: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "made", {f"{i}.png": png(picture(i)) for i in range(9)})
    assert dmd2(*words(means, folder, tmp_path / "x.json", "fid", f"{lab}.spread")) == 0
    table = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[:2]]
    assert table[0] == ["FID", "spread of mine"] and table[1][2] == "7.2 ± 0.5"
    figures = json.loads((tmp_path / "x.json").read_text())
    assert (figures["images_spread"], figures["images_spread_hidden"]) == (7.25, 3.0)
    # A report reads how it is shown, and imports nothing that a file names.
    look = {"heading": "spread of mine", "more_is_better": True, "form": "{:.1f}", "share": False}
    assert figures["own_figures"] == {"spread": look}
    assert (
        from_plain(figures["own_figures"])["spread"]
        == metrics.figures_of([f"{lab}.spread"])["spread"]
    )


def test_evaluate_asks_an_own_metric_whether_there_are_enough_samples(
    lab: str, means: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "made", {f"{i}.png": png(picture(i)) for i in range(2)})
    line = words(means, folder, tmp_path / "x.json", f"{lab}.spread")
    with pytest.raises(ValueError, match="2 generated samples, expected 3"):
        dmd2(*line)


def test_evaluate_refuses_a_module_that_is_no_metric(
    lab: str, means: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *words(means, tmp_path, tmp_path / "x.json", f"{lab}.nothing"))
    assert "does not define compute and FIGURES" in said
    said = refused(capsys, *words(means, tmp_path, tmp_path / "x.json", f"{lab}.absent"))
    assert f"'{lab}.absent' is no module that Python finds" in said


def test_table_shows_a_figure_that_is_declared_and_no_other(lab: str) -> None:
    found = {"images_num_samples": 3, "images_spread": 1.0, "images_other": 2.0}
    assert "spread of mine" not in metrics_table(found)
    table = metrics_table(found, [f"{lab}.spread"])
    assert "spread of mine" in table and "other" not in table


def test_rows_of_an_ablation_are_compared_by_an_own_metric(lab: str, tmp_path: Path) -> None:
    recipe = tmp_path / "table.py"
    recipe.write_text(
        f"{RECIPE.read_text()}\n\n"
        "def get_ablation():\n"
        f'    return {{"seeds": (0,), "metrics": ("fid", "{lab}.spread"), "rows": {{\n'
        '        "a": {"overrides": {}, "published": {"spread": 2.0}},\n'
        '        "b": {"overrides": {"distill.critic_turns": 1}, "published": {"spread": 1.0}}},\n'
        '        "ordered": (("a", "b", "spread"),)}\n'
    )
    ablation = load_ablation(str(recipe))
    assert ablation.pairs[0].figure == "spread"
    assert ablation.figures["spread"].heading == "spread of mine"


def test_every_metric_declares_the_figures_that_tables_show() -> None:
    shown = metrics.figures_of(metrics.available())
    assert next(iter(shown)) == "fid"
    assert {"kid", "inception_score", "precision", "coverage", "diversity"} < set(shown)
    assert not shown["kid"].more_is_better and shown["recall"].more_is_better


def test_metric_that_reads_what_no_extractor_makes_is_refused_by_name(
    lab: str, tmp_path: Path
) -> None:
    file = tmp_path / "own" / lab / "pixels.py"
    file.write_text(SPREAD.replace('("features",)', '("pixels",)'))
    with pytest.raises(ValueError, match=r"metric .*\.pixels reads \['pixels'\], expected some of"):
        metrics.needs([f"{lab}.pixels"])


@pytest.mark.parametrize("form", ["{0.__class__}", "{:999999999d}", "{}{}", 7])
def test_figures_of_a_file_are_shown_as_numbers_whatever_it_says(form: object) -> None:
    values = {"x": {"heading": "X", "form": form}, "y": {"form": "{:.1f}"}, "z": "{:.1f}"}
    assert from_plain(values) == {"x": Figure("X", more_is_better=False)}
    assert from_plain(["x"]) == {}
