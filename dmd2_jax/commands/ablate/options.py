"""What `dmd2 ablate` is asked for."""

import argparse
import dataclasses
from collections.abc import Mapping

from dmd2_jax.config.flags import comma_separated, flag

__all__ = ["Options"]


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 ablate` is asked for."""

    config: str = flag("an ablation: configs/ablations/table3.py, or table3", metavar="FILE")
    workdir: str = flag("the folder of everything", metavar="DIR")
    rows: tuple[str, ...] = flag(
        "run these only; default: all",
        default=(),
        metavar="A,B",
        parse=comma_separated(str, "names like dmd2,no_gan"),
    )
    seeds: tuple[int, ...] = flag(
        "of the students; default: the ablation's",
        default=(),
        metavar="N,M",
        parse=comma_separated(_seed, "whole numbers like 0,1,2"),
    )
    dry_run: bool = flag(
        "check config, data and folder of every row, trace its program, and stop", default=False
    )
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
