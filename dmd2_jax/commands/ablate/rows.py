"""Ablations: a recipe, and rows that change some of its values, in one config file.

    get_config()     the base, as of any recipe
    get_ablation()   what is run and compared, as a dict:
      rows       name -> {"overrides": {"distill.critic_turns": 1, ...}, and if wanted "label",
                 "published": {"fid": 2.62}, "on": some of `switches`}
      seeds      of the students; each row is run with each
      ordered    pairs (better row, worse row) or (better, worse, figure), fid by default
      metrics    as of `dmd2 evaluate`; ("fid",) by default
      switches   headings of columns that are ticked in the rows that have them "on"
      title      of table and picture

configs/ablations/table3.py is one.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.config.load import apply_overrides, call_recipe, load_config
from dmd2_jax.config.plugins import is_dotted, nearest_or_stop
from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics import all_figures, available, figures_of
from dmd2_jax.metrics.contract.figures import CLASS_ACCURACY, Figure

__all__ = [
    "Ablation",
    "Pair",
    "Row",
    "check_seeds",
    "load_ablation",
]


_ROW_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_FOLDERS = ("teacher", "classifier")  # of the workdir, beside the rows'
_GROUPS = ("distill", "optim")  # what a row may change: all else is the teacher's, or measures it
_EXAMPLE = "configs/ablations/table3.py"


class Row(NamedTuple):
    """One variant.

    Attributes:
      name: of its folder.
      label: in the table.
      overrides: {"distill.critic_turns": "1"}, as on the command line.
      published: figure -> value in the paper.
      on: which of the ablation's switches it has.
    """

    name: str
    label: str
    overrides: dict[str, str]
    published: dict[str, float]
    on: tuple[str, ...]


class Pair(NamedTuple):
    """Two rows that the paper orders by a figure."""

    better: str
    worse: str
    figure: str = "fid"


class Ablation(NamedTuple):
    """What is run and compared; see the module.

    Attributes:
      path: as it was given.
      base_overrides: changes to the base, as on the command line.
      title: of table and picture.
      seeds: of the students.
      metrics: of `dmd2 evaluate`.
      switches: headings of ticked columns.
      rows: in the order of the table.
      pairs: that the paper orders.
    """

    path: str
    base_overrides: dict[str, str]
    title: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    switches: tuple[str, ...]
    rows: dict[str, Row]
    pairs: tuple[Pair, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """What rows can be compared by, in the order of the table's columns."""
        return all_figures(self.metrics)

    @property
    def name(self) -> str:
        """The file's bare name."""
        return Path(self.path).stem

    def base(self) -> ConfigDict:
        """Return the base config, made anew."""
        config = load_config(self.path)
        apply_overrides(config, self.base_overrides)
        return config

    def config(self, row: str, seed: int, teacher: str) -> ConfigDict:
        """Return the config of one run.

        Args:
          row: its name.
          seed: of the student.
          teacher: the weights, where the base names none.

        Raises:
          Refused: if an override is refused.
        """
        config = self.base()
        try:
            apply_overrides(config, self.rows[row].overrides)
        except Refused as error:
            raise Refused(f"row {row!r} of {self.path}: {error}") from error
        config.name, config.seed = f"{config.name}_{row}", seed
        config.teacher.weights = config.teacher.weights or teacher
        return config


def load_ablation(path: str, overrides: Mapping[str, str] | None = None) -> Ablation:
    """Read an ablation and check all of it that can be checked without data or devices.

    Args:
      path: a file of configs/ablations, by its bare name too, or one of your own.
      overrides: changes to the base config; a row's own come after them.

    Raises:
      Refused: if there is no such file, or something in it is refused.
    """
    load_config(path)  # a plain recipe is told what it is to have, not what it fails at
    values = call_recipe(
        path, "get_ablation", 'return {"rows": ..., "seeds": ...} beside get_config()', _EXAMPLE
    )
    values = _fields(values, f"get_ablation() of {path}", {"rows", "seeds"}, _ABLATION_FIELDS)
    if not isinstance(values["rows"], Mapping) or not values["rows"]:
        raise Refused(
            f"{path}: rows={values['rows']!r}, expected a dict with a row or more; see {_EXAMPLE}."
        )
    switches = tuple(values.get("switches", ()))
    metrics = tuple(values.get("metrics", ("fid",)))
    figures = all_figures(metrics)
    rows = {name: _row(path, name, row, switches, figures) for name, row in values["rows"].items()}
    pairs = tuple(_pairs(path, values.get("ordered", ()), rows, metrics))
    ablation = Ablation(
        path,
        dict(overrides or {}),
        str(values.get("title", Path(path).stem)),
        check_seeds(values["seeds"], f"{path}: seeds"),
        metrics,
        switches,
        rows,
        pairs,
    )
    for name in rows:
        ablation.config(name, ablation.seeds[0], "")
    return ablation


def check_seeds(seeds: Any, name: str) -> tuple[int, ...]:
    """Return seeds as a tuple.

    Raises:
      Refused: unless they are one or more different whole numbers in 0..2^32 - 1.
    """
    good = isinstance(seeds, tuple | list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds
    )
    if not good or not seeds or len(set(seeds)) != len(seeds):
        raise Refused(
            f"{name}={seeds!r}, expected one or more different whole numbers from 0; for example "
            f"(0, 1, 2)."
        )
    return tuple(seeds)


_ABLATION_FIELDS = {"title", "seeds", "metrics", "switches", "rows", "ordered"}
_ROW_FIELDS = {"label", "overrides", "published", "on"}


def _fields(values: Any, where: str, needed: set[str], known: set[str]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise Refused(
            f"{where} is a {type(values).__name__}, expected a dict of {sorted(known)}; see "
            f"{_EXAMPLE}."
        )
    for name in values:
        if name not in known:
            raise Refused(
                f"{where} has {name!r}, expected some of {sorted(known)}"
                f"{nearest_or_stop(name, known)}"
            )
    missing = sorted(needed - set(values))
    if missing:
        raise Refused(f"{where} has no {missing[0]!r}, expected one; see {_EXAMPLE}.")
    return dict(values)


def _row(
    path: str, name: Any, values: Any, switches: tuple[str, ...], figures: Collection[str]
) -> Row:
    if not isinstance(name, str) or not _ROW_NAME.fullmatch(name) or name in _FOLDERS:
        raise Refused(
            f"{path}: a row is named {name!r}, expected a folder's name of a-z, 0-9 and _ other "
            f"than {' and '.join(_FOLDERS)}; rename it."
        )
    where = f"row {name!r} of {path}"
    values = _fields(values, where, {"overrides"}, _ROW_FIELDS)
    overrides = values["overrides"]
    if not isinstance(overrides, Mapping):
        raise Refused(f"{where}: overrides={overrides!r}, expected a dict; {{}} changes none.")
    for key in overrides:
        if str(key).partition(".")[0] not in _GROUPS:
            raise Refused(
                f"{where} changes {key}, expected keys of {' and '.join(_GROUPS)}, as all rows "
                f"share data, teacher and measurement; change it in get_config()."
            )
    published, on = values.get("published", {}), tuple(values.get("on", ()))
    for figure in published:
        _check_figure(figure, where, figures)
    for switch in on:
        if switch not in switches:
            raise Refused(
                f'{where}: "on" has {switch!r}, expected some of switches={switches}; add it there.'
            )
    texts = {key: str(value) for key, value in overrides.items()}
    return Row(name, str(values.get("label", name)), texts, dict(published), on)


def _check_figure(figure: Any, where: str, names: Collection[str]) -> None:
    if figure not in names:
        raise Refused(
            f"{where} names the figure {figure!r}, expected one of {sorted(names)}"
            f"{nearest_or_stop(figure, names)}"
        )


def _pairs(
    path: str, ordered: Any, rows: Mapping[str, Row], metrics: tuple[str, ...]
) -> Iterator[Pair]:
    measured = (
        figures_of([name for name in metrics if name in available() or is_dotted(name)])
        | CLASS_ACCURACY
    )
    for words in ordered:
        where = f"{path}: ordered has {words!r}, which"
        if not isinstance(words, tuple | list) or len(words) not in (2, 3):
            raise Refused(
                f"{where} is no pair, expected (better row, worse row) or (better, worse, figure)."
            )
        pair = Pair(*words)
        for name in pair[:2]:
            if name not in rows:
                raise Refused(
                    f"{where} names the row {name!r}, expected one of {list(rows)}"
                    f"{nearest_or_stop(name, rows)}"
                )
        if pair.better == pair.worse:
            raise Refused(f"{where} compares a row with itself, expected two; correct it.")
        _check_figure(pair.figure, where, measured)
        more = measured[pair.figure].more_is_better
        _check_published(where, pair, more, *(rows[name].published for name in pair[:2]))
        yield pair
    repeated = [a for a, b in itertools.combinations(ordered, 2) if tuple(a) == tuple(b)]
    if repeated:
        raise Refused(f"{path}: ordered has {repeated[0]!r} twice; leave one away.")


def _check_published(
    where: str,
    pair: Pair,
    more_is_better: bool,
    better: Mapping[str, float],
    worse: Mapping[str, float],
) -> None:
    """Refuse a pair that is the other way round than the published figures beside it."""
    if pair.figure not in better or pair.figure not in worse:
        return
    gain = better[pair.figure] - worse[pair.figure]
    if not (gain > 0 if more_is_better else gain < 0):
        raise Refused(
            f"{where} contradicts the published {pair.figure}, {better[pair.figure]} and "
            f"{worse[pair.figure]}; exchange the rows, or correct the figures."
        )
