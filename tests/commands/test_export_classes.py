"""`dmd2 export` of students of classes: weights, and lines of Python that sample them."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.distill import generate
from dmd2_jax.recipe.open import build_family
from dmd2_jax.run.folder import open_run
from dmd2_jax.weights.state_dict import read_safetensors
from tests.tiny import contents, dmd2, refused, scratch
from tests.tiny_unet import get_config

TIMES = (1.0, 0.75, 0.5)


SMALL = {"family": "sit", "width": "8", "depth": "2", "heads": "2", "shift": "3.0"}


def sit_run(**settings: str) -> tuple[Path, Any]:
    """A run of a small SiT, and its config."""
    given = {f"model.{key}": value for key, value in (SMALL | settings).items()}
    return made_run("distill", **given, **{"distill.student_times": ",".join(map(str, TIMES))})


@functools.cache
def made_run(command: str, **settings: str) -> tuple[Path, Any]:
    """What training leaves: the config, and weights made up; and the config."""
    config = get_config()
    apply_overrides(config, settings)
    folder = scratch() / "run"
    open_run(folder, command, plain(config))
    family = build_family(config)
    random = np.random.RandomState(0)
    params = jax.tree.map(
        lambda x: 0.3 * random.standard_normal(x.shape).astype(np.float32), family.param_shapes()
    )
    which = "student" if command == "distill" else "teacher"
    family.save(params, folder / f"{which}.safetensors")
    return folder, config


def exported(run: Path, *more: str) -> Path:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={run}", f"--out={out}", *more) == 0
    return out


def code_of(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


def test_lines_of_the_readme_draw_the_students_images(monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = sit_run()
    out = exported(run)
    assert set(contents(out)) == {"README.md", "student.safetensors"}
    card = (out / "README.md").read_text()
    names: dict[str, Any] = {}
    monkeypatch.chdir(out)
    exec(compile(code_of(card), "README.md", "exec"), names)
    family = build_family(config)
    params = family.load(run / "student.safetensors")
    labels = family.cond(np.arange(8) % 10)
    expected = generate(family.denoiser, params, names["noise"], labels, times=TIMES)
    np.testing.assert_array_equal(names["images"], expected)
    assert np.std(expected) > 0.1
    for row in ("| 1 | 0 | 1 |", "| 0.75 | 0.25 | 0.75 |", "| 0.5 | 0.5 | 0.5 |"):
        assert row in card


def test_weights_of_a_sit_have_the_original_names_and_the_readme_says_what_they_mean() -> None:
    run, _ = sit_run(data_time="1", time_scale="1.0")
    out = exported(run)
    names = read_safetensors(out / "student.safetensors").keys()
    assert {"blocks.0.attn.qkv.weight", "t_embedder.mlp.0.weight"} < names
    card = (out / "README.md").read_text()
    assert "The network is told 1 (1 - t) and predicts x_0 - eps." in card
    assert "diffusers' DiTTransformer2DModel cannot hold them" in card


def test_student_of_the_other_family_is_exported_too() -> None:
    run, _ = made_run("distill")
    out = exported(run)
    got, expected = (read_safetensors(folder / "student.safetensors") for folder in (out, run))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor)
    assert "x = 80 z" in (out / "README.md").read_text()


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={sit_run()[0]}", f"--out={out}", "--dry_run") == 0
    assert "dry run: " in capsys.readouterr().out and not out.exists()


@pytest.mark.parametrize("flag", ["--lora", "--single_file", "--scheduler=lcm", "--dtype=float16"])
def test_export_of_classes_refuses_what_is_of_pipelines(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", f"--workdir={sit_run()[0]}", f"--out={scratch() / 's'}", flag]
    assert "of a run of classes, expected none: it is of text-to-image" in refused(capsys, *line)


def test_export_refuses_a_teacher_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", f"--workdir={made_run('train-teacher')[0]}", f"--out={scratch() / 's'}"]
    assert "expected a student; `dmd2 convert` writes its weights" in refused(capsys, *line)
