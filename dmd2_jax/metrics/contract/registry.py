"""How metrics are found and computed, and what a metric's file offers (`Metric`).

A metric is a module: a file of dmd2_jax/metrics, or a dotted module of the user's own. Its
docstring begins with a line that says what it measures. It knows nothing of what made the
features. Its numbers are named after it: those of FIGURES are shown, with `kid_std` behind `kid`;
others, such as `fid_bias`, stand in metrics.json alone.
"""

import functools
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dmd2_jax.config import plugins
from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import (
    CLASS_ACCURACY,
    STUDENT,
    Figure,
    by_deviation,
    of_images,
)
from dmd2_jax.metrics.features.extractor import KEEP, FeatureSet

__all__ = [
    "Metric",
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

_PACKAGE = "dmd2_jax.metrics"
_PARTS = frozenset(("statistics", *KEEP))


class Metric(Protocol):
    """What a metric's module has to offer.

    Attributes:
      REAL, FAKE: what it reads of each side: "statistics", or names of `extractor.KEEP`; REAL is
        empty if it looks at the generated samples alone.
      FIGURES: name of each number that tables show -> its heading, format, direction, interval.
      compute: (real, fake, options with defaults by name) -> the numbers.
    """

    REAL: Sequence[str]
    FAKE: Sequence[str]
    FIGURES: Mapping[str, Figure]

    def compute(
        self, real: FeatureSet | None, fake: FeatureSet, **options: Any
    ) -> Mapping[str, float]:
        """Return the numbers."""


@runtime_checkable
class UsesMore(Protocol):
    """A metric that makes use of more where it is there.

    Attributes:
      FAKE_USES: of generated samples, as in FAKE.
    """

    FAKE_USES: Sequence[str]


@runtime_checkable
class ChecksCount(Protocol):
    """A metric that refuses too few samples before any features are made."""

    def check_count(self, count: int, dimension: int, side: str) -> None:
        """Refuse too few samples of a side, "real" or "generated"."""


class Needs(NamedTuple):
    """What some metrics read of each side.

    Attributes:
      real: "statistics" and names of `extractor.KEEP`; without any of the latter, a file of
        reference statistics is enough.
      fake: likewise; also what they only make use of, for deviations.
    """

    real: frozenset[str]
    fake: frozenset[str]


def available() -> list[str]:
    """List the names of the metrics of ours, in alphabetical order."""
    return plugins.available(_PACKAGE)


def summaries() -> dict[str, str]:
    """Return what each metric measures, in a line."""
    return {name: (inspect.getdoc(_metric(name)) or "").splitlines()[0] for name in available()}


def figures_of(names: Collection[str]) -> dict[str, Figure]:
    """Return what some metrics show, FID first: the columns of tables in their order.

    Args:
      names: of metrics as `dmd2 evaluate` takes them, dotted modules and those with feature
        networks of their own among them.
    """
    found: dict[str, Figure] = {}
    for name in sorted(names, key=lambda name: (name != "fid", name)):
        found |= _OTHERS[name] if name in _OTHERS else dict(_metric(name).FIGURES)
    return found


def all_figures(own: Collection[str] = ()) -> dict[str, Figure]:
    """Return every figure that tables can show.

    Args:
      own: metrics of the user's own that were asked for, dotted modules; others are ignored.
    """
    return {**_ours(), **figures_of({name for name in own if plugins.is_dotted(name)})}


@functools.cache
def _ours() -> dict[str, Figure]:
    return figures_of([*available(), *_OTHERS]) | CLASS_ACCURACY


def needs(names: Collection[str]) -> Needs:
    """Return what has to be collected for some metrics.

    Args:
      names: of `available()`.

    Returns:
      The union over the metrics; pass its parts as `keep` of `collect`.

    Raises:
      ValueError: if there is no such metric.
    """
    metrics = [_metric(name) for name in names]
    return Needs(
        frozenset(part for metric in metrics for part in metric.REAL),
        frozenset(
            part
            for metric in metrics
            for part in (*metric.FAKE, *(metric.FAKE_USES if isinstance(metric, UsesMore) else ()))
        ),
    )


def compute(
    names: Collection[str],
    real: FeatureSet | None,
    fake: FeatureSet,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """Compute several metrics of the same features.

    Args:
      names: of `available()`.
      real: features of real samples, or None if no metric looks at them.
      fake: features of generated samples.
      options: metric -> its keyword options.

    Returns:
      The numbers of all of them, in the order of the names.

    Raises:
      ValueError: if a name or option is unknown, the two sides are of different extractors, a
        metric needs what was not kept, or there are too few samples.
    """
    check_options(options or {})
    if real is not None and real.extractor != fake.extractor:
        raise Refused(
            f"real features are of extractor {real.extractor!r} and generated ones of "
            f"{fake.extractor!r}, expected the same; use one extractor for both sides."
        )
    numbers: dict[str, float] = {}
    for name in names:
        metric = _metric(name)
        _check_parts(name, "real", real, metric.REAL)
        _check_parts(name, "generated", fake, metric.FAKE)
        numbers |= metric.compute(real, fake, **(options or {}).get(name, {}))
    return numbers


def check_counts(names: Collection[str], count: int, dimension: int, side: str) -> None:
    """Refuse a number of samples that a metric would refuse, before any features are made.

    Args:
      names: of `available()`.
      count: samples of the side.
      dimension: d, features a vector.
      side: "real" or "generated".

    Raises:
      ValueError: if there are too few for one of them, with its default options.
    """
    for name in names:
        metric = _metric(name)
        if isinstance(metric, ChecksCount):
            metric.check_count(count, dimension, side)


def check_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse options that a metric does not have, before any features are computed.

    Args:
      options: metric -> its keyword options.

    Raises:
      ValueError: if there is no such metric or option.
    """
    for name, given in options.items():
        parameters = inspect.signature(_metric(name).compute).parameters
        known = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise Refused(
                f"metric {name} has no option {unknown[0]!r}, expected one of {known}; correct it."
            )


def _metric(name: str) -> Metric:
    needed = ("compute", "REAL", "FAKE", "FIGURES")
    module: Any = plugins.load_plugin(name, _PACKAGE, "metric", known=available(), needs=needed)
    unknown = sorted({*module.REAL, *module.FAKE, *getattr(module, "FAKE_USES", ())} - _PARTS)
    if unknown:
        raise Refused(
            f"metric {name} reads {unknown}, expected some of {sorted(_PARTS)}; correct its REAL "
            "and FAKE."
        )
    return module


def _check_parts(name: str, side: str, features: FeatureSet | None, parts: Collection[str]) -> None:
    missing = [part for part in parts if getattr(features, part, None) is None]
    if missing:
        raise Refused(
            f"metric {name} needs {', '.join(missing)} of the {side} samples, which are not there; "
            "collect them (`needs` says what), or leave the metric out: a file of reference "
            "statistics has no features, and not every network has logits."
        )


_OTHERS: dict[str, dict[str, Figure]] = {
    "patch_fid": {
        "patch_fid": Figure(
            "patch FID",
            more_is_better=False,
            mean_form="{:.2f}",
            interval=by_deviation("patch_fid_std", STUDENT),
            method="As that of FID.",
        )
    },
    **{
        name: {
            name: Figure(
                heading,
                form=form,
                interval=of_images(f"{name}_std"),
                method="Interval of the mean over num_samples images, each with its prompt. Where "
                "there are several images of a prompt, which are alike, it is too narrow for other "
                "prompts.",
            )
        }
        for name, heading, form in (
            ("clip_score", "CLIP score", "{:.3f}"),
            ("pick_score", "PickScore", "{:.3f}"),
            ("hps_v2", "HPS v2", "{:.4f}"),
        )
    },
}
"""What `dmd2 evaluate` measures with feature networks of its own."""
