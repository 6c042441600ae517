"""Tables of text that commands print."""

from collections.abc import Sequence

import jax
import numpy as np

from dmd2_jax.run.checkpoint import state_bytes
from dmd2_jax.typing import PyTree

__all__ = ["aligned", "parameter_table"]


def parameter_table(networks: dict[str, PyTree]) -> str:
    """Return a table of parameter counts, one network a line.

    Args:
      networks: name -> weights, or their shapes.
    """
    rows: list[tuple[object, ...]] = [("network", "tensors", "parameters", "MB")]
    for name, params in networks.items():
        leaves = jax.tree.leaves(params)
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        rows.append((name, len(leaves), f"{count:,}", f"{state_bytes(params) / 1e6:,.1f}"))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows of one length as a table, the first column left, the others right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [str(cell).rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([str(first).ljust(widths[0]), *cells]))
    return "\n".join(lines)
