"""The notebook's code cells run in order, with the tiny settings that it keeps for this test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "digits.ipynb"
nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_digits_notebook_is_stripped(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_digits_notebook_code_runs_in_order(cells, tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    env = {
        **os.environ,
        "DMD2_NOTEBOOK_TINY": "1",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    # Its own process: the notebook prepares the backend, which must come before any device use.
    result = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "times cheaper" in result.stdout
    for run, weights in [("teacher", "teacher.safetensors"), ("student", "student.safetensors")]:
        assert (tmp_path / "runs" / "notebook" / run / weights).stat().st_size > 0
