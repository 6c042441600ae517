"""Read run folders, write the page: what `dmd2 report` does."""

from collections.abc import Sequence
from pathlib import Path

from dmd2_jax.commands.report.config_section import config_section
from dmd2_jax.commands.report.curve_section import curve_section
from dmd2_jax.commands.report.metric_section import metric_section
from dmd2_jax.commands.report.page import page
from dmd2_jax.commands.report.runs import ReportError, read_runs
from dmd2_jax.commands.report.sample_section import sample_section
from dmd2_jax.commands.report.speed_section import speed_section
from dmd2_jax.runtime.places import has_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file

__all__ = ["LARGEST", "ReportError", "write_report"]

LARGEST = 10_000_000
"""Bytes of a page at most."""


def write_report(workdirs: Sequence[str], out: str | Path) -> Path:
    """Write one HTML page of the runs, whole or not at all. The same runs give the same bytes.

    Args:
      workdirs: run folders, 1 to 8; only read.
      out: the page, named *.html; replaced if it exists.

    Returns:
      `out`.

    Raises:
      ReportError: if the page cannot be named so, or a folder's files make none.
      RunFolderError: if a folder holds no run.
    """
    out = path_of(out)
    if out.suffix not in (".html", ".htm"):
        raise ReportError(f"--out={out} names no page, expected a name that ends in .html; add it.")
    if out.is_dir() or not has_folder(out.parent):
        raise ReportError(
            f"--out={out} cannot be a file, expected one in a folder that exists; create "
            f"{out.parent} or give another name."
        )
    runs = read_runs(workdirs)
    sections = (
        config_section(runs),
        curve_section(runs),
        sample_section(runs),
        metric_section(runs),
        speed_section(runs),
    )
    # A folder's name need not be UTF-8, nor a string of JSON.
    data = page(runs, sections).encode("utf-8", "replace")
    if len(data) > LARGEST:
        raise ReportError(
            f"the page would have {len(data):,} bytes, expected at most {LARGEST:,}; give fewer of "
            "--workdir, or look which file of them is so large."
        )
    with whole_file(out) as partial:
        partial.write_bytes(data)
    return out
