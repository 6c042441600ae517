"""The demo through its command, at a size that runs in seconds."""

import json

import pytest
from PIL import Image

from tests.tiny import RECIPE, dmd2


@pytest.mark.slow
def test_demo_prints_a_table_and_writes_figures_and_picture(tmp_path, capsys):
    words = ("demo", "--workdir", tmp_path, "--config", RECIPE, "--config.distill.cycles=2")
    assert dmd2(*words) == 0
    printed = capsys.readouterr().out
    assert "calls/image" in printed and "real, half to half" in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["teacher_nfe"] == 3 and metrics["student_nfe"] == 1
    assert metrics["classifier_test_accuracy"] >= 0.97
    assert metrics["real_fid_floor"] < metrics["student_fid"]  # two cycles teach nothing yet
    for name in ("teacher_fid", "student_class_accuracy", "teacher_seconds_per_image",
                 "student_seconds_per_image", "seconds_total"):  # fmt: skip
        assert metrics[name] >= 0
    with Image.open(tmp_path / "summary.png") as picture:
        assert min(picture.size) > 300
    assert (tmp_path / "teacher" / "teacher.safetensors").is_file()
    assert (tmp_path / "student" / "student_ema_0.9.safetensors").is_file()
