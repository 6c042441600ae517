"""Metrics of generated samples, one file each; a new file here is a new name."""

from dmd2_jax.metrics.contract.registry import (
    Needs,
    all_figures,
    available,
    check_counts,
    check_options,
    compute,
    figures_of,
    needs,
    summaries,
)

__all__ = [
    "Needs",
    "all_figures",
    "available",
    "check_counts",
    "check_options",
    "compute",
    "figures_of",
    "needs",
    "summaries",
]
