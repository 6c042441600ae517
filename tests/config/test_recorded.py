"""Configs of older releases, and what a user's older recipe and overrides are told."""

import json
import shutil
from pathlib import Path

import pytest

from dmd2_jax.config import defaults
from dmd2_jax.config.load import apply_overrides, from_plain, load_config, plain
from dmd2_jax.config.recorded import completed, translated
from dmd2_jax.recipe.open import check
from dmd2_jax.run.folder import RunFolderError, open_run, read_run
from dmd2_jax.sampling.runs import read_run_folder

OLD = Path(__file__).with_name("old_run.json")
"""What `dmd2 distill --config=tests/tiny.py` wrote before each family had keys of its own."""


def old() -> dict:
    return json.loads(OLD.read_text())["config"]


def test_old_config_becomes_a_whole_config_of_today() -> None:
    config = from_plain(completed(translated(old(), "x")))
    check(config)
    assert set(config.model) == set(defaults.get_config("edm").model)
    assert (config.model.sigma_max, config.model.rho, config.model.num_levels) == (80.0, 7.0, 1000)
    assert "schedule" not in config
    assert "resolution" not in config.data
    assert config.log.export_every == config.log.grid_every == 4
    assert config.optim.generator_lr == 1e-4


def test_old_config_keeps_a_schedule_that_is_not_the_default() -> None:
    values = old()
    values["schedule"] |= {"sigma_max": 20.0, "num_levels": 50}
    model = translated(values, "x")["model"]
    assert (model["sigma_max"], model["num_levels"]) == (20.0, 50)


def test_old_config_of_text_to_image_loses_the_other_familys_keys() -> None:
    values = old()
    values["model"] |= {"family": "stable_diffusion", "pipeline": "sd15", "scan_layers": True}
    model = translated(values, "x")["model"]
    assert set(model) == set(defaults.get_config("stable_diffusion").model)
    assert (model["pipeline"], model["scan_layers"], model["resolution"]) == ("sd15", True, 8)


def test_translated_says_what_moved_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        translated(old(), "once")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("once: an older config was read, its keys moved")


def test_translated_leaves_a_config_of_today_alone(capsys: pytest.CaptureFixture[str]) -> None:
    values = plain(load_config("sd15"))
    assert translated(values, "new") == completed(values) == values
    assert capsys.readouterr().err == ""


def test_old_run_opens_and_resumes_with_the_config_of_today(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path / "config.json")
    run = read_run_folder(tmp_path)
    which, config = run.which, run.config
    assert which == "student"
    assert open_run(tmp_path, "distill", plain(config))  # resumed: nothing differs
    command, values = read_run(tmp_path)
    assert (command, values) == ("distill", json.loads(json.dumps(plain(config))))


def test_old_run_refuses_another_schedule(tmp_path: Path) -> None:
    shutil.copy(OLD, tmp_path / "config.json")
    config = read_run_folder(tmp_path).config
    config.model.sigma_max = 40.0
    with pytest.raises(RunFolderError, match=r"model.sigma_max: got 40.0, the run there has 80.0"):
        open_run(tmp_path, "distill", plain(config))


@pytest.mark.parametrize(
    ("key", "now"),
    [("schedule.sigma_max", "model.sigma_max"), ("data.resolution", "model.resolution")],
)
def test_override_of_a_moved_key_names_the_new_one(key: str, now: str) -> None:
    with pytest.raises(match=rf"--config.{key} has moved, expected --config.{now}; write .*=8"):
        apply_overrides(defaults.get_config(), {key: "8"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.data.resolution = 32", "config.data.resolution is now config.model.resolution"),
        ("config.schedule.sigma_max = 1.0", "config.schedule.sigma_max is now config.model"),
        (
            "config.model.family = 'x'; config.model.pipeline = ''",
            "keys of its own in config.model",
        ),
    ],
)
def test_older_recipe_is_told_what_to_change(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "old.py"
    head = "from configs import common\ndef get_config():\n    config = common.get_config()\n"
    file.write_text(f"{head}    {line}\n    return config\n")
    with pytest.raises(match=message):
        load_config(str(file))


def test_older_recipe_is_told_where_the_base_lies_when_there_is_no_package_configs(
    tmp_path: Path,
) -> None:
    """As where a wheel is installed, which has the recipes under our own name."""
    file = tmp_path / "old.py"
    file.write_text("from configs.no_such_recipe import get_config\n")
    with pytest.raises(match=r"begin the recipe with `from dmd2_jax\.config import defaults`"):
        load_config(str(file))
