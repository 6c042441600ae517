"""The scripts of examples/, each run as it stands there."""

import ast
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py"))


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_is_short_and_states_its_command(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 80
    assert f"python examples/{name}.py" in (ast.get_docstring(ast.parse(text)) or "")


def test_plain_jax_student_has_the_datas_mean_and_spread() -> None:
    x_0 = np.asarray(example("plain_jax").main())
    np.testing.assert_allclose(x_0.mean(axis=0), [1.0, -1.0], atol=0.1)
    np.testing.assert_allclose(x_0.std(axis=0), 0.2, atol=0.1)


def test_nnx_module_is_trained_and_its_student_reaches_both_sides() -> None:
    losses, x_0 = example("nnx_module").main()
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:5])
    assert 0.3 < float((x_0[:, 0] > 0).mean()) < 0.7
    assert float(np.mean(np.abs(np.abs(x_0[:, 0]) - 1) < 0.4)) > 0.5


def test_equinox_module_comes_nearer_to_the_data() -> None:
    pytest.importorskip("equinox")
    before, after = example("equinox_module").main()
    assert before > 0.5 and after < 0.15


def test_own_objective_falls_under_its_own_optimizer() -> None:
    values = example("own_objective").main()
    assert values[-1] < 0.1 * values[0]


def test_own_mesh_of_eight_devices_trains_as_one_does() -> None:
    mesh = example("own_mesh")
    parts, loss = mesh.main()
    alone, expected = mesh.main(devices=jax.devices()[:1])
    assert (parts, alone) == ([8] * 8, [64])
    assert loss == pytest.approx(expected, rel=1e-5)
