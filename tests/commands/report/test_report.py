"""`dmd2 report` through the command: what is on the page, and what cannot get into it."""

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.report.folders import write_run
from tests.commands.report.pages import evil_page, report, two_runs
from tests.tiny import contents, refused, student_run, teacher_run


def test_report_has_every_section() -> None:
    assert [section["id"] for section in two_runs().all("section")] == [
        *("config", "curves", "samples", "metrics", "speed")
    ]


def test_report_loads_nothing_from_elsewhere() -> None:
    addresses = [
        attributes[key]
        for _, attributes in two_runs().elements
        for key in ("src", "href", "srcset", "action", "data")
        if key in attributes
    ]
    assert len(addresses) > 5
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in addresses)
    assert "://" not in two_runs().source
    assert "url(" not in two_runs().source
    assert "@import" not in two_runs().source


def test_report_allows_no_script_and_no_style_but_its_own() -> None:
    page = two_runs()
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for element in ("script", "style"):
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", page.source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules.pop(f"{element}-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_report_shows_an_own_metric_as_the_run_recorded_it(tmp_path: Path) -> None:
    """The module itself is not imported: it need not be there, and may be a stranger's."""
    looks = {"heading": "spread <of> mine", "more_is_better": True, "form": "{:.1f} px"}
    figures = {"student_num_samples": 9, "student_spread": 7.25, "student_other": 7.25}
    run = write_run(tmp_path / "x", figures=figures | {"own_figures": {"spread": looks}})
    head, row = report(tmp_path / "x.html", run).tables[
        "Metrics, [95 % interval] where there is one"
    ]
    assert dict(zip(head, row, strict=True)) == {
        "measured": "student",
        "spread <of> mine": "7.2 px",
        "other": "7.250",
        "samples": "9",
    }


def test_report_says_in_words_what_every_picture_shows() -> None:
    page = two_runs()
    assert all(image["alt"] for image in page.all("img"))
    assert all(
        drawing.get("aria-hidden") == "true" or len(drawing["aria-label"]) > 20
        for drawing in page.all("svg")
    )


def test_report_embeds_the_pixels_of_each_grid() -> None:
    files = sorted(student_run().glob("grid_*.png")) + sorted(teacher_run().glob("grid_*.png"))
    images = two_runs().all("img")
    assert len(images) == len(files)
    for file, image in zip(files, images, strict=True):
        data = base64.b64decode(image["src"].partition(",")[2])
        shown, drawn = Image.open(io.BytesIO(data)), Image.open(file).convert("RGB")
        assert drawn.width <= 640  # wider ones are made smaller
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(drawn))


def test_report_draws_the_curves_of_both_runs() -> None:
    rows = [json.loads(line) for line in (student_run() / "metrics.jsonl").open()]
    (label,) = (
        drawing["aria-label"]
        for drawing in two_runs().all("svg")
        if drawing.get("aria-label", "").startswith("dm loss over")
    )
    values = [row["dm_loss"] for row in rows]
    said = f"student: from {values[0]:.4g} to {values[-1]:.4g}, least {min(values):.4g}"
    assert said in label
    assert "teacher: from" not in label  # it has no such loss


def test_report_of_one_run_shows_what_differs_from_the_base(tmp_path: Path) -> None:
    page = report(tmp_path / "one.html", student_run())
    head, *rows = page.tables["Config: what differs"]
    assert head == ["key", "dmd2_jax/config/defaults.py", "student"]
    keys = [row[0] for row in rows]
    assert ["distill.cycles", "200", "4"] in rows
    assert ["model.depth", "4", "1"] in rows
    assert "optim.b1" not in keys
    assert keys == sorted(keys)


def test_report_of_two_runs_shows_only_the_keys_that_differ(tmp_path: Path) -> None:
    alike = {"name": "x", "seed": 0, "distill": {"cycles": 4, "student_times": [80.0]}}
    other = {"name": "x", "seed": 1, "distill": {"cycles": 4, "student_times": [80.0, 2.0]}}
    runs = (write_run(tmp_path / "a", alike), write_run(tmp_path / "b", other | {"new": True}))
    page = report(tmp_path / "two.html", *runs)
    assert page.tables["Config: what differs"] == [
        ["key", "a", "b"],
        ["distill.student_times", "[80.0]", "[80.0, 2.0]"],
        ["new", "(absent)", "true"],
        ["seed", "0", "1"],
    ]


def test_report_shows_figures_with_their_intervals(tmp_path: Path) -> None:
    figures = {
        "real_fid_floor": 0.5,
        "student_fid": 2.5,
        "student_fid_std": 0.1,
        "student_class_accuracy": 0.8,
        "student_num_samples": 100,
        "student_nfe": 1,
        "student_ema_0.9_fid": 1.5,
        "student_ema_0.9_num_samples": 100,
        "extractor": "classifier-abc/none",
        "classifier_test_accuracy": 0.99164,
        "devices": {"platform": "tpu", "kind": "TPU v5e", "number": 8, "processes": 2},
    }
    page = report(tmp_path / "x.html", write_run(tmp_path / "run", figures=figures))
    (found,) = (rows for caption, rows in page.tables.items() if caption.startswith("Metrics"))
    assert found == [
        ["measured", "FID", "class accuracy", "samples", "calls an image"],
        # Student: 2.262157 times 0.1.
        # Wilson, by hand: (0.8 + 0.019207 -+ 1.96 sqrt(0.0016 + 0.00009604)) / 1.0384
        ["student", "2.50 [2.27, 2.73]", "80.0 % [71.1 %, 86.7 %]", "100", "1"],
        ["student_ema_0.9", "1.500", "–", "100", "–"],
        ["real, half to half", "0.500", "–", "–", "–"],
    ]
    assert "extractor: classifier-abc/none" in page.text
    assert "classifier test accuracy: 0.9916." in page.text
    assert "measured on: 8 tpu (TPU v5e) of 2 processes" in page.text


def test_report_says_which_devices_a_run_had(tmp_path: Path) -> None:
    cpu = {"platform": "cpu", "kind": "cpu", "number": 1, "processes": 1}
    gpu = {"platform": "gpu", "kind": "NVIDIA L4", "number": 2, "processes": 1}
    devices = [{"after_step": 0, **cpu}, {"after_step": 40, **gpu}]
    page = report(tmp_path / "x.html", write_run(tmp_path / "run", devices=devices))
    assert "on 1 cpu from cycle 0 on, on 2 gpu (NVIDIA L4) from cycle 40 on" in page.text
    assert "cycle 4 of 4, on 1 cpu" in two_runs().text


def test_report_warns_of_runs_that_were_not_measured_alike(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, figures={"student_fid": 1.0, "student_num_samples": n})
        for name, n in (("a", 100), ("b", 200))
    ]
    assert "FIDs do not compare: samples (100, 200)" in report(tmp_path / "x.html", *runs).text


def test_report_sums_up_speed_and_memory(tmp_path: Path) -> None:
    speed = [
        {"step": i, "images_per_second": float(i), "data_wait_share": 0.01 * i}
        | {"host_memory_peak_mb": 1000.0 + i, "first_cycle_seconds": 7.5 if i == 1 else None}
        for i in range(1, 12)
    ]
    page = report(tmp_path / "x.html", write_run(tmp_path / "run", speed=speed))
    assert page.tables["Speed and memory"] == [
        ["", "run"],
        ["images a second", "6 [2, 10]"],
        ["first cycle, s", "7.5"],
        ["waiting for data", "6.0 %"],
        ["host memory, peak MB", "1,011"],
    ]


def test_report_of_a_run_that_has_reported_nothing_says_so(tmp_path: Path) -> None:
    text = report(tmp_path / "x.html", write_run(tmp_path / "young")).text
    for words in (
        "young has reported no metrics yet",
        "young has drawn no samples yet",
        "young has no metrics.json yet: `dmd2 evaluate` writes one",
        "young has reported no speed yet",
    ):
        assert words in text


def test_report_shows_what_resuming_changed(tmp_path: Path) -> None:
    changes = [{"after_step": 4, "changed": {"optim.generator_lr": [1e-5, 2e-5]}}]
    page = report(tmp_path / "x.html", write_run(tmp_path / "run", changes=changes))
    assert "after cycle 4: optim.generator_lr: [1e-05, 2e-05]" in page.text


def test_report_shows_what_is_in_files_and_never_makes_elements_of_it() -> None:
    page = evil_page()
    assert len(page.all("script")) == 1
    assert [image["src"][:5] for image in page.all("img")] == ["data:", "data:"]
    assert not any(key.startswith("on") for _, found in page.elements for key in found)
    assert page.text.count("document.title='broken'") > 8


def test_report_leaves_the_runs_alone_and_gives_the_same_bytes_again(tmp_path: Path) -> None:
    before = contents(student_run())
    pages = [report(tmp_path / name, student_run()).source for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    assert contents(student_run()) == before


def test_report_tells_runs_of_one_name_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / place / "student") for place in ("one", "four")]
    page = report(tmp_path / "x.html", *runs)
    assert "one/student – distill" in page.text
    assert "four/student – distill" in page.text


def test_report_does_not_follow_links_out_of_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (run / "grid_0000001.png").symlink_to(tmp_path / "private.png")
    assert report(tmp_path / "x.html", run).all("img") == []


def test_report_names_a_grid_that_is_no_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "grid_0000001.png").write_bytes(b"<svg onload=alert(1)>")
    assert "grid_0000001.png cannot be shown" in report(tmp_path / "x.html", run).text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the following arguments are required: --workdir"),
        (("--workdir=nowhere",), "no run in workdir nowhere"),
        (("--workdir={run}", "--workdir={run}/../run"), "is given twice"),
        (("--workdir={run}",) * 9, "got 9 of --workdir, expected 1 to 8"),
        (("--workdir={run}", "--out={run}/config.json"), "ends in .html"),
        (("--workdir={run}", "--out={run}/no/x.html"), "in a folder that exists"),
        (("--workdir={run}", "--config.seed=1"), "takes its config from the run folder"),
    ],
)
def test_report_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    run = write_run(tmp_path / "run")
    before = contents(tmp_path)
    words = tuple(word.format(run=run) for word in words)
    assert message in refused(capsys, "report", *words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "[1]", "it holds a list"),
        ("metrics.json", "{", "metrics.json cannot be read"),
        ("metrics.jsonl", "[1]\n", "line 1 is no object with a number as step"),
        ("metrics.jsonl", '{"step": "<b>"}\n', "line 1 is no object with a number as step"),
        ("speed.jsonl", "{\n{}\n", "line 1 of"),
        (
            "config.json",
            '{"command": "distill", "config": 3}',
            "'config' missing or of",
        ),
    ],
)
def test_report_refuses_a_damaged_file_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text(text)
    error = refused(capsys, "report", f"--workdir={run}", f"--out={tmp_path}/x.html")
    assert name in error
    assert message in error
    assert not (tmp_path / "x.html").exists()
