"""Pages made through the command, once for all tests."""

import functools
from pathlib import Path

import numpy as np

from tests.commands.report.folders import Page, write_run
from tests.tiny import dmd2, scratch, student_run, teacher_run


def report(out: Path, *workdirs: Path) -> Page:
    """Write a page through the command and read it."""
    assert dmd2("report", *(f"--workdir={folder}" for folder in workdirs), f"--out={out}") == 0
    return Page(out.read_text())


@functools.cache
def two_runs() -> Page:
    """Return the page of the tiny student and its teacher."""
    return report(scratch() / "two.html", student_run(), teacher_run())


EVIL = "<script>document.title='broken'<img src=x onerror=alert(1)>\"'&amp;"


@functools.cache
def evil_page() -> Page:
    """Return the page of a run whose every text would break out."""
    folder = scratch()
    run = write_run(
        folder / EVIL,
        {"name": f"</title>{EVIL}</script>", EVIL: {"x": f"</td>{EVIL}"}},
        command=EVIL,
        rows=[{"step": i, EVIL: float(i), f"{EVIL}_by_level": [i, 2.0]} for i in (1, 2)],
        speed=[{"step": 1, EVIL: 1.0}],
        figures={f"{EVIL}_{EVIL}": 1.0, f"{EVIL}_num_samples": 5, "extractor": EVIL}
        | {f"{EVIL}_nfe": EVIL, "devices": {"kind": EVIL, "number": EVIL}},
        devices=[{"platform": EVIL, "kind": [EVIL], "processes": EVIL}, {"after_step": EVIL}, EVIL],
        grids={1: np.zeros((4, 4), np.uint8), 2: np.zeros((4, 4), np.uint8)},
        changes=[{"after_step": EVIL, "changed": {EVIL: EVIL}}, EVIL],
    )
    return report(folder / "evil.html", run)
