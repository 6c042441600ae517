"""The rows of a verification: how far two computations of one part are from each other."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["HEADING", "Report", "Row", "compare", "only_ours"]

Verdict = Literal["agrees", "differs", "not compared", "damaged"]


class Row(NamedTuple):
    """One part.

    Attributes:
      part: its name.
      verdict: of it.
      absolute: the largest difference; None: there is none to say.
      relative: that to the largest value of the same array.
      note: where the largest difference is, or why there is none.
    """

    part: str
    verdict: Verdict
    absolute: float | None
    relative: float | None
    note: str

    def __str__(self) -> str:
        numbers = ["-" if x is None else f"{x:.1e}" for x in (self.absolute, self.relative)]
        return f"{self.part:<17} {self.verdict:<13} {numbers[0]:>8} {numbers[1]:>9}  {self.note}"


HEADING = f"{'part':<17} {'verdict':<13} {'largest':>8} {'relative':>9}"


class Report(NamedTuple):
    """What `dmd2 verify` found.

    Attributes:
      rows: one a part.
      verdict: "agrees" if each part does; "differs" if one does or is damaged; else "not compared".
    """

    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of the parts."""
        found = {row.verdict for row in self.rows}
        if found & {"differs", "damaged"}:
            return "differs"
        return "agrees" if found == {"agrees"} else "not compared"

    @property
    def exit_code(self) -> int:
        """Of the command: 0 for agreement alone."""
        return 0 if self.verdict == "agrees" else 1


def compare(
    part: str,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    *,
    tolerance: float,
    relative: bool = True,
) -> Row:
    """Compare the arrays of a part.

    Args:
      part: its name.
      ours, theirs: arrays by their names, the same in both.
      tolerance: what a difference may reach; 0 for tokens.
      relative: whether it is meant of the largest value of their array.

    Returns:
      The row of the array that is furthest off.
    """
    worst = Row(part, "agrees", 0.0, 0.0, "")
    for name, theirs_array in theirs.items():
        a, b = np.asarray(ours[name]), np.asarray(theirs_array)
        if a.shape != b.shape:
            note = f"{name}: shape {list(a.shape)}, theirs {list(b.shape)}"
            return Row(part, "differs", None, None, note)
        for array, whose in ((a, "ours"), (b, "theirs")):
            if not np.isfinite(array).all():
                return Row(part, "differs", None, None, f"{name}: {whose} is not finite")
        difference = float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
        share = difference / max(float(np.abs(b).max(initial=0.0)), 1e-30)
        far = share if relative else difference
        if not worst.note or far > ((worst.relative if relative else worst.absolute) or 0.0):
            verdict: Verdict = "agrees" if far <= tolerance else "differs"
            worst = Row(part, verdict, difference, share, name)
    return worst


def only_ours(part: str, arrays: Mapping[str, np.ndarray], why: str) -> Row:
    """Return the row of a part that was computed here alone."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            return Row(part, "damaged", None, None, f"{name} is not finite")
    return Row(part, "not compared", None, None, f"read, finite numbers; {why}")
