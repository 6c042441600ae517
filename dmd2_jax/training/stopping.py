"""Conditions that end a run before its last step, `config.log.stop_when`, and its best weights.

What they look at is what the run reports, and what they know of earlier reports is read from
metrics.jsonl: a run that was stopped and resumed decides as one that was not.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.config.plugins import nearest
from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.precision_recall import check_count
from dmd2_jax.recipe.exported_weights import written_step
from dmd2_jax.run.exported import BEST
from dmd2_jax.run.job import Verdict
from dmd2_jax.run.metrics import plain_value
from dmd2_jax.training.health import RULES

__all__ = ["FIGURES", "WARNINGS", "Condition", "Stopping", "stop_conditions", "stopping"]

FIGURES = {"fid": False, "class_accuracy": True, "precision": True, "recall": True}
"""What a training measures -> whether more is better."""

WARNINGS = tuple(f"warning_{name}" for name in RULES)
"""What a distillation's reports are judged by."""

_log = logging.getLogger(__name__)

_NEIGHBOURS = ("precision", "recall")
_KEY = "log.stop_when"
_FORMS = "fid:patience=3, recall:below=0.2 or class_accuracy:below=0.5"


class Condition(NamedTuple):
    """One of `config.log.stop_when`; of the last three fields one counts, of a warning none.

    Attributes:
      name: of FIGURES or WARNINGS.
      patience: measurements in a row that may be no better than the best.
      below, above: the bound that the figure must not fall below, or rise above, once it kept it.
    """

    name: str
    patience: int | None = None
    below: float | None = None
    above: float | None = None


class Stopping:
    """Look at the reports of a run one after another; see `run.job.Stopper`.

    Example:
      stopping = Stopping(stop_conditions(config, students=True), unit="cycle")
      stopping.replay(rows)  # of before a resumption
      stopping.report(370, {"fid": 3.2}).reason  # "" to go on
    """

    def __init__(
        self, conditions: Sequence[Condition], unit: str, file: Path | None = None
    ) -> None:
        """Begin with no report.

        Args:
          conditions: any of them ends the run.
          unit: what a step is called.
          file: of the best weights; None: nothing is said of it.
        """
        self._conditions, self._unit, self._file = tuple(conditions), unit, file
        self._best = {it.name: (0, math.nan) for it in conditions if it.patience is not None}
        self._since = dict.fromkeys(self._best, 0)
        self._kept: set[Condition] = set()

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> Verdict:
        """Take in the reports of before a resumption; return what the last of them says.

        Args:
          rows: of metrics.jsonl.
        """
        verdict = Verdict()
        for row in rows:
            verdict = self.report(int(row["step"]), row)
        if not verdict.best:
            self._say_of_another()
        return verdict

    def _say_of_another(self) -> None:
        """Say where the best weights that are there were the best by other conditions."""
        for name, (step, value) in self._best.items():
            if step and self._file is not None and self._file.is_file():
                its = written_step(self._file)
                if its not in (None, step):
                    _log.warning(
                        "%s is of %s %d, by earlier conditions: the best %s, %.4g, was that of %s "
                        "%d, whose weights were not kept. It stays until a better one comes.",
                        *(self._file, self._unit, its, name, value, self._unit, step),
                    )

    def report(self, step: int, values: Mapping[str, Any]) -> Verdict:
        """Return whether a report ends the run, and whether its weights are the best so far.

        Args:
          step: steps taken.
          values: the report, with what was measured and `warning_NAME` of what was found.
        """
        best, reasons = False, []
        for it in self._conditions:
            if it.name not in values:
                continue
            value = plain_value(values[it.name])
            value = math.nan if value is None else float(value)
            if it.patience is not None:
                best |= self._is_best(it.name, step, value)
                reasons.append(self._no_better(it.name, it.patience))
            elif it.name in FIGURES:
                reasons.append(self._out_of_bounds(it, value))
            else:
                reasons.append(f"{it.name} is {value:.3g}")
        return Verdict("; ".join(filter(None, reasons)), best)

    def _is_best(self, name: str, step: int, value: float) -> bool:
        _, before = self._best[name]
        better = value > before if FIGURES[name] else value < before
        if better or (math.isnan(before) and not math.isnan(value)):
            self._best[name], self._since[name] = (step, value), 0
            return True
        self._since[name] += 1
        return False

    def _no_better(self, name: str, patience: int) -> str:
        step, value = self._best[name]
        if self._since[name] < patience:
            return ""
        than = f"than {value:.4g} of {self._unit} {step}" if step else "than nothing finite"
        many = "s" if self._since[name] > 1 else ""
        return f"{name} was no better {than} in {self._since[name]} measurement{many}"

    def _out_of_bounds(self, it: Condition, value: float) -> str:
        word, bound = ("below", it.below) if it.above is None else ("above", it.above)
        assert bound is not None  # `_parsed` makes no other
        if value < bound if word == "below" else value > bound:
            return f"{it.name} is {value:.4g}, {word} {bound:g}" if it in self._kept else ""
        if not math.isnan(value):
            self._kept.add(it)
        return ""


def stopping(conditions: Sequence[Condition], unit: str, workdir: Path) -> Stopping | None:
    """Return what looks at the reports of a run; None: no condition does.

    Args:
      conditions, unit: see `Stopping`.
      workdir: the run folder.
    """
    return Stopping(conditions, unit, workdir / BEST) if conditions else None


def stop_conditions(config: ConfigDict, *, students: bool) -> tuple[Condition, ...]:
    """Return the conditions of a config that count for a training.

    Args:
      config: the whole config.
      students: of a distillation, else of a teacher's training, which nothing warns of: one recipe
        is for both.

    Raises:
      Refused: if one is no condition, two name a best, or what they look at is not measured, or of
        too few samples.
    """
    found = tuple(_parsed(text) for text in config.log.stop_when)
    patient = [it.name for it in found if it.patience is not None]
    if len(patient) > 1:
        raise Refused(
            f"{_KEY} has patience for {' and '.join(patient)}, expected one figure, as the best "
            "weights are kept by it; give the others a bound, such as recall:below=0.2."
        )
    measured = [it.name for it in found if it.name in (*FIGURES, "warning_recall")]
    if measured and not config.log.evaluate_every:
        raise Refused(
            f"{_KEY} has {measured[0]} and log.evaluate_every=0 (never), expected it to be "
            "measured; set config.log.evaluate_every, or leave it away."
        )
    for name, why in _never(config, students).items():
        if name in [it.name for it in found]:
            raise Refused(f"{_KEY} has {name}, which {why}; leave it away.")
    figures = [name for name in measured if name in _NEIGHBOURS]
    if figures:
        try:
            check_count(config.evaluate.training_samples, 0, "generated")
        except Refused as error:
            raise Refused(
                f"{_KEY} has {figures[0]} and evaluate.training_samples="
                f"{config.evaluate.training_samples}: {error}"
            ) from error
    return tuple(it for it in found if students or it.name in FIGURES)


def _never(config: ConfigDict, students: bool) -> dict[str, str]:
    """Return what a run of this config never reports, and why."""
    never = {}
    if config.model.get("num_classes") == 0:
        never["class_accuracy"] = "no network of model.num_classes=0 has, expected classes"
    if students and not config.distill.gan_critic_weight:
        never["warning_discriminator"] = "no run without a GAN has, expected gan_critic_weight"
    if config.data.name == "latents":
        never["warning_saturation"] = "latents do not have, expected images in pixels"
    return never


def _parsed(text: Any) -> Condition:
    """Read one condition."""
    name, _, rest = text.partition(":") if isinstance(text, str) else (text, "", "")
    if name not in (*FIGURES, *WARNINGS):
        known = (*FIGURES, *WARNINGS)
        raise Refused(
            f"{_KEY} has {text!r}, expected conditions of {', '.join(known)}, such as {_FORMS}"
            f"{nearest(str(name), known)}."
        )
    if name in WARNINGS:
        if rest:
            raise Refused(f"{_KEY} has {text!r}, expected {name} alone; take the rest off.")
        return Condition(name)
    word, _, number = rest.partition("=")
    try:
        if word == "patience" and int(number) >= 1:
            return Condition(name, patience=int(number))
        if word == "below" and math.isfinite(float(number)):
            return Condition(name, below=float(number))
        if word == "above" and math.isfinite(float(number)):
            return Condition(name, above=float(number))
    except ValueError:
        pass
    raise Refused(
        f"{_KEY} has {text!r}, expected {name}:patience=N with N from 1, {name}:below=X or "
        f"{name}:above=X, such as {_FORMS}; correct it."
    )
