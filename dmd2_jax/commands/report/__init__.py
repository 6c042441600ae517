"""One self-contained HTML page of one run or of several side by side: `dmd2 report`."""

from dmd2_jax.commands.report.write import ReportError, write_report

__all__ = ["ReportError", "write_report"]
