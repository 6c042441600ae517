"""Which checkpoints stay: the last n, every n-th step, the best m by a metric."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationContext, PreservationPolicy

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.integrity import read_manifest

__all__ = ["Keep", "Retention"]


@dataclasses.dataclass(frozen=True)
class Keep:
    """The rule: a checkpoint stays if any of these keeps it.

    Attributes:
      latest: the last n, >= 1.
      every: steps that are multiples of it; 0 is none.
      best: the m with the lowest metric, of those that have it; 0 is none.
      metric: its name in the checkpoint's `extra["metrics"]`; lower is better.
    """

    latest: int = 3
    every: int = 0
    best: int = 0
    metric: str = "fid"

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
          ValueError: if one is out of range.
        """
        if self.latest < 1:
            raise Refused(f"keep={self.latest} checkpoints, expected at least 1; set log.keep=1.")
        if self.every < 0 or self.best < 0:
            raise Refused(
                f"keep_every={self.every} and keep_best={self.best}, expected 0 (none) or more; "
                f"set log.keep_every and log.keep_best."
            )

    def most(self, total: int) -> int:
        """Return how many checkpoints of a run of `total` steps may be on disk at once."""
        return self.latest + self.best + (total // self.every if self.every else 0)


class Retention(PreservationPolicy):
    """Orbax's question which checkpoints to preserve, answered by `Keep`.

    Orbax has policies of its own, but keeps their metrics in a file that nothing protects and
    that stops the manager from opening when it is damaged. Ours come from the sealed manifest.
    """

    def __init__(self, directory: Path, keep: Keep) -> None:
        """Answer for the checkpoints of a directory."""
        self._directory, self._keep = directory, keep
        self._metrics: dict[int, float | None] = {}

    def note(self, step: int, extra: Mapping[str, Any]) -> None:
        """Take down the metric of a checkpoint that is about to be saved."""
        value = (extra.get("metrics") or {}).get(self._keep.metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        self._metrics[step] = float(value) if math.isfinite(value) else None

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Return, for each checkpoint, whether it stays; they come oldest first."""
        keep, steps = self._keep, [info.step for info in checkpoints]
        staying = set(steps[-keep.latest :])
        if keep.every:
            staying |= {step for step in steps if step % keep.every == 0}
        if keep.best:
            scored = [(self._metric(step), step) for step in steps]
            staying |= {
                step for _, step in sorted(s for s in scored if s[0] is not None)[: keep.best]
            }
        return [step in staying for step in steps]

    def _metric(self, step: int) -> float | None:
        if step not in self._metrics:
            try:
                self.note(step, read_manifest(self._directory / str(step))["extra"])
            except ValueError:
                self._metrics[step] = None  # a damaged checkpoint is nobody's best
        return self._metrics[step]
