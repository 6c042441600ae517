"""The table of outcomes, and its place in the documentation."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tests.chaos.engine import BAD, GOOD

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


class Row(NamedTuple):
    """One kind.

    Attributes:
      name: what is harmed.
      outcomes: name -> how often.
      seconds, cpu: how long its tries took, of the clock and of processors.
      missing: why it could not be tried here; "" if it was.
    """

    name: str
    outcomes: Counter[str]
    seconds: float
    cpu: float
    missing: str = ""

    @property
    def wrong(self) -> int:
        """Tries with an outcome that must not be."""
        return sum(self.outcomes[name] for name in BAD)


def markdown(rows: Sequence[Row], words: str, date: str, commit: str) -> str:
    """Return the table, with what it was measured by: the command's own words among it."""
    lines = [
        f"| kind | tries | {' | '.join(GOOD)} | wrong | CPU seconds |",
        "|---|" + "---|" * (len(GOOD) + 3),
    ]
    total = Row("**all**", sum((row.outcomes for row in rows), Counter()), 0, 0)
    total = total._replace(cpu=sum(r.cpu for r in rows), seconds=sum(r.seconds for r in rows))
    for row in [*rows, total]:
        good = " | ".join(str(row.outcomes[name]) for name in GOOD)
        wrong = ", ".join(f"{row.outcomes[name]} {name}" for name in BAD if row.outcomes[name])
        name = f"{row.name} (not tried: {row.missing})" if row.missing else row.name
        lines.append(f"| {name} | {row.outcomes.total()} | {good} | {wrong or 0} | {row.cpu:.0f} |")
    lines.append("")
    lines.append(
        f'`make chaos CHAOS_ARGS="{words}"`, {date}, at {commit}: {total.seconds:.0f} seconds.'
    )
    return "\n".join(lines)


def replaced(page: str, table: str) -> str:
    """Return a page with another table between its two marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"expected {BEGIN} and {END} in the page"
    return f"{before}{BEGIN}\n{table}\n{END}{after}"
