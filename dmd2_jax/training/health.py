"""Whether a student that trains looks alive: its reports judged, and what usually cures it.

The losses of a dying student look as always. What does show it is measured in every cycle
(`distill/health.py`), so that judging costs nothing and changes no number: a finding is one more
entry of a report, `warning_NAME`, and a healthy run's reports have none.
"""

import collections
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dmd2_jax import data
from dmd2_jax.data import Source
from dmd2_jax.distill.health import SATURATED
from dmd2_jax.run.metrics import plain_value

__all__ = [
    "CRITIC_FACTOR",
    "GAN_LOSS_LEFT",
    "MEAN_OFF",
    "PRECISE",
    "RECALL_LEFT",
    "RULES",
    "SATURATION_OVER",
    "SETTLED",
    "STD_FACTOR",
    "WINDOW",
    "Health",
    "guidance_key",
    "real_statistics",
]

WINDOW = 8
"""Reports that are averaged before they are judged: one batch's mean says little.

Of a run of few reports a quarter, at least `_FEWEST`: with more of them a student that died in the
middle would be over before it shows.
"""

SETTLED = 0.2
"""Share of a run after which being off counts; before, only going further off than at the start."""

MEAN_OFF = 0.6
"""Largest distance of the generated mean from the real one, in real standard deviations."""

STD_FACTOR = 1.6
"""Largest ratio of the generated and the real standard deviation, either way."""

SATURATION_OVER = 0.2
"""How much larger the generated share of saturated values may be than the real one."""

CRITIC_FACTOR = 2.0
"""Largest ratio of the critic's error to the least that it had since the run had settled."""

GAN_LOSS_LEFT = 0.2
"""Least loss of the discriminator, in nats; undecided it is 2 ln 2 = 1.39."""

PRECISE = 0.5
"""Precision above which a low recall is a student that repeats itself, and no beginner."""

RECALL_LEFT = 0.1
"""Least recall of such a student."""

_FEWEST = 3  # reports, and measurements at most
_AT_LEAST = ("discriminator", "recall")  # whose limit is the least, not the largest
_FURTHER = 1.25  # times as far off as at the start
_SLOWER = (
    "begin anew, or from an earlier checkpoint, with a third of config.optim.generator_lr, or with "
    "more config.distill.critic_turns"
)

_log = logging.getLogger(__name__)


class Rule(NamedTuple):
    """One sign that a student is dying.

    Attributes:
      limit: what is healthy ends there.
      what: which figures do what, with {value} and {limit}.
      cure: what usually helps.
      less: what is lowered with {guidance}, which names the key; left out where there is none.
      early: whether it counts before the run has settled.
    """

    limit: float
    what: str
    cure: str
    less: str = ""
    early: bool = True

    def said(self, value: float, guidance: str = "config.distill.guidance") -> str:
        """Return in words what was found, and what usually helps.

        Args:
          value: what was found.
          guidance: the key that says how much guidance there is; "": there is none.
        """
        found = self.what.format(value=f"{value:.3g}", limit=f"{self.limit:g}")
        cure = self.cure + (self.less.format(guidance=guidance) if guidance else "")
        return f"the student may be dying: {found}. What usually helps: {cure}."


RULES = {
    "mean": Rule(
        MEAN_OFF,
        "generated_mean is {value} real deviations from real_mean, healthy is up to {limit}",
        f"the samples drift in brightness or colour: {_SLOWER}; look at scores_*.png",
    ),
    "std": Rule(
        STD_FACTOR,
        "generated_std and real_std differ by a factor of {value}, healthy is up to {limit}",
        f"contrast is lost or overdone: {_SLOWER}",
        less="; where it is too high, lower {guidance}",
    ),
    "saturation": Rule(
        SATURATION_OVER,
        "generated_saturation is {value} above real_saturation, healthy is up to {limit}",
        "samples burn out: lower config.distill.gan_generator_weight (where there is a GAN)",
        less=" or {guidance}",
    ),
    "critic": Rule(
        CRITIC_FACTOR,
        "denoising_loss has risen to {value} times its least, healthy is up to {limit}",
        "the critic does not follow the student: raise config.distill.critic_turns or "
        "config.optim.critic_lr, or lower config.optim.generator_lr",
        early=False,
    ),
    "discriminator": Rule(
        GAN_LOSS_LEFT,
        "gan_critic_loss is {value}, healthy is {limit} or more: the discriminator has won",
        "lower config.distill.gan_critic_weight, widen config.distill.gan_range, or lower "
        "config.optim.critic_lr",
        early=False,
    ),
    "recall": Rule(
        RECALL_LEFT,
        "recall is {value}, healthy is {limit} or more, while most images look real: it draws few "
        "of them over and over",
        "compare the images of a row of grid_*.png; raise config.distill.critic_turns or "
        "config.optim.critic_lr, lower config.optim.generator_lr, or give it a GAN "
        "(config.distill.gan_generator_weight)",
        early=False,
    ),
}
"""Name -> what is judged; `warning_NAME` is the value found."""

_MEASURED = ("precision", "recall")  # every `log.evaluate_every` steps
_SEEN = (
    *("generated_mean", "generated_std", "generated_saturation"),
    *("real_mean", "real_std", "real_saturation", "denoising_loss", "gan_critic_loss"),
)


class Health:
    """Judge the reports of a run one after another.

    Example:
      health = Health(total=360, every=10)
      health.replay(rows)  # of before a resumption
      found = health.report(370, values)  # {} or {"warning_mean": 1.2}
    """

    def __init__(
        self,
        *,
        total: int,
        every: int,
        real: Mapping[str, float] | None = None,
        latents: bool = False,
        unit: str = "cycle",
        guidance: str = "config.distill.guidance",
    ) -> None:
        """Begin with no report.

        Args:
          total: steps of the whole run.
          every: steps between two reports; others, as at a stop, are judged and not counted.
          real: real_mean, real_std and real_saturation, of reports that have none.
          latents: whether the samples are latents, whose saturation means nothing.
          unit: what a step is called.
          guidance: the key that says how much guidance there is; "": there is none.
        """
        self._total, self._every, self._unit = total, every, unit
        self._guidance = guidance
        self._real, self._latents = dict(real or {}), latents
        self._size = _window(total // every)
        self._window: collections.deque[dict[str, float]] = collections.deque(maxlen=self._size)
        self._start: dict[str, float] | None = None
        self._least = math.inf
        self._measured: collections.deque[dict[str, float]] = collections.deque(maxlen=_FEWEST)
        self._found: dict[str, float] = {}
        self._said: set[str] = set()

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the reports of before a resumption, saying nothing.

        Args:
          rows: of metrics.jsonl.
        """
        for row in rows:
            self._add(int(row["step"]), row)
        self._said |= set(self._found)

    def report(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
        """Return what is wrong at a report, and say it where it was not.

        Args:
          step: steps taken.
          values: the report.

        Returns:
          `warning_NAME` -> the value found, in the words of `RULES`; {} where all is well.
        """
        self._add(step, values)
        for name, value in self._found.items():
            if name not in self._said:
                self._said.add(name)
                _log.warning("%s %d: %s", self._unit, step, RULES[name].said(value, self._guidance))
        self._said &= set(self._found)
        return {f"warning_{name}": value for name, value in self._found.items()}

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        measured = {name: plain_value(values[name]) for name in _MEASURED if name in values}
        if len(measured := _numbers(measured)) == len(_MEASURED):
            self._measured.append(measured)
        if step % self._every:
            return
        plain = {name: plain_value(values[name]) for name in _SEEN if name in values}
        self._window.append({"step": step, **self._real} | _numbers(plain))
        if len(self._window) < self._size:
            return
        settled = self._window[0]["step"] >= SETTLED * self._total
        figures = self._figures(settled)
        if self._start is None:
            self._start = figures
        self._found = {}
        for name, value in figures.items():
            rule = RULES[name]
            over = value < rule.limit if name in _AT_LEAST else value > rule.limit
            further = rule.early and value > _FURTHER * self._start.get(name, 0.0)
            if over and (settled or further):
                self._found[name] = value

    def _figures(self, settled: bool) -> dict[str, float]:
        """Return the value of every rule that can be judged, of the window's means."""
        it = {name: _mean(self._window, name) for name in _SEEN}
        figures = {}
        if it["real_std"] > 0:
            off = abs(it["generated_mean"] - it["real_mean"]) / it["real_std"]
            ratio = max(it["generated_std"], 1e-6) / it["real_std"]
            figures |= {"mean": off, "std": max(ratio, 1 / ratio)}
        if not self._latents:
            figures["saturation"] = it["generated_saturation"] - it["real_saturation"]
        if settled and it["denoising_loss"] > 0:
            self._least = min(self._least, it["denoising_loss"])
            figures["critic"] = it["denoising_loss"] / self._least
        figures["discriminator"] = it["gan_critic_loss"]
        if len(self._measured) > 1:  # one is not believed
            precision, recall = (_mean(self._measured, name) for name in _MEASURED)
            figures |= {"recall": recall} if precision > PRECISE else {}
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def _mean(rows: Iterable[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return sum(values) / len(values) if values else math.nan


def _window(reports: int) -> int:
    return WINDOW if reports < WINDOW else min(WINDOW, max(_FEWEST, reports // 4))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def guidance_key(distill: Mapping[str, Any]) -> str:
    """Return which key says how much guidance there is; "": there is none.

    Args:
      distill: `config.distill`, or as much of it as is known.
    """
    if distill.get("guidance_range"):
        return "the upper end of config.distill.guidance_range"
    return "" if distill.get("guidance") in (None, 1) else "config.distill.guidance"


def real_statistics(dataset: Source, number: int = 64) -> dict[str, float]:
    """Return real_mean, real_std and real_saturation of some images that are spread over a source.

    Args:
      dataset: it has images.
      number: how many, at most.
    """
    places = np.unique(np.linspace(0, len(dataset) - 1, min(number, len(dataset))).astype(int))
    x = data.inputs_of(dataset.examples(places))
    assert x is not None  # it has images
    x_0 = np.asarray(data.to_model(x))
    return {
        "real_mean": float(x_0.mean()),
        "real_std": float(x_0.std()),
        "real_saturation": float((np.abs(x_0) > SATURATED).mean()),
    }
