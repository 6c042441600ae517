"""Metrics of generated samples, one file each; a new file here is a new name.

A metric is a module with

    compute(real: FeatureSet, fake: FeatureSet, *, options with defaults) -> dict of numbers
    REAL, FAKE    what it reads of each side: "statistics", or names of `extractor.KEEP`;
                  REAL = () if it looks at the generated samples alone
    FAKE_USES     optional: what it reads of generated samples where it is there

whose numbers are named after it (`kid`, `kid_std`) and whose docstring begins with a line that says
what it measures. It knows nothing of what made the features. It may also have

    check_count(count, dimension, side)    raises ValueError for too few samples
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.features.extractor import FeatureSet

__all__ = ["Needs", "available", "check_counts", "check_options", "compute", "needs", "summaries"]


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
    """List the names of the metrics, in alphabetical order."""
    modules = (module for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(module.name for module in modules if module.name != "measured_sets")


def summaries() -> dict[str, str]:
    """Return what each metric measures, in a line."""
    return {name: _metric(name).__doc__.splitlines()[0] for name in available()}


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
            part for metric in metrics for part in (*metric.FAKE, *getattr(metric, "FAKE_USES", ()))
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
        check = getattr(_metric(name), "check_count", None)
        if check is not None:
            check(count, dimension, side)


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


def _metric(name: str) -> ModuleType:
    names = available()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "choose one of these."
        raise Refused(f"metric {name!r}, expected one of {names}; {hint}")
    return importlib.import_module(f"{__name__}.{name}")


def _check_parts(name: str, side: str, features: FeatureSet | None, parts: Collection[str]) -> None:
    missing = [part for part in parts if getattr(features, part, None) is None]
    if missing:
        raise Refused(
            f"metric {name} needs {', '.join(missing)} of the {side} samples, which are not there; "
            "collect them (`needs` says what), or leave the metric out: a file of reference "
            "statistics has no features, and not every network has logits."
        )
