"""Train a teacher, with EDM's objective, on eps or on a flow.

example:
  dmd2 train-teacher --config=configs/digits.py --workdir=runs/teacher

writes into --workdir: config.json, data.json, metrics.jsonl, speed.jsonl, curves.png,
  grid_*.png, progress.gif, checkpoints/, teacher.safetensors (the moving average of the weights).

The same command again, or --workdir alone, resumes where the run stopped. Ctrl-C saves
first; so does SIGTERM. A folder that holds a run of another config is refused, unless what differs
is named by --allow_change. docs/durability.md has the details.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dmd2_jax.config.flags import flag
from dmd2_jax.config.load import allowed_changes, apply_overrides, as_recipe, load_config
from dmd2_jax.config.refused import Refused

if TYPE_CHECKING:
    from ml_collections import ConfigDict

__all__ = ["Options", "run", "train_by"]

RESUMES = True
SEVERAL = True


def _span(text: str) -> tuple[int, int]:
    start, colon, count = text.partition(":")
    if not (colon and start.isdecimal() and count.isdecimal() and int(count) >= 1):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected START:COUNT with START >= 0 and COUNT >= 1, for example 1:3"
        )
    return int(start), int(count)


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 train-teacher` and `dmd2 distill` are asked for."""

    workdir: str = flag("the run folder", metavar="DIR")
    config: str = flag(
        "a recipe: configs/digits.py, or digits; default: that of the run in DIR",
        default="",
        metavar="FILE",
    )
    allow_change: tuple[str, ...] = flag(
        "keys of the config that may differ from the resumed run's: optim.critic_lr,data",
        default=(),
        metavar="KEYS",
        repeated=True,
    )
    dry_run: bool = flag(
        "check config, data, weights, devices and disk, print sizes, and stop", default=False
    )
    profile: tuple[int, int] | None = flag(
        "let START steps (cycles) of this process pass, then trace COUNT for a profiler, into "
        "DIR/profile; alone 1:3, the three after the first, which compiles",
        default=None,
        metavar="START:COUNT",
        parse=_span,
        const=(1, 3),
    )
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> Path | None:
    """Train a teacher; return the file of its weights, None of a dry run."""
    from dmd2_jax.training.teacher import train

    return train_by(train, "teacher", options)


def train_by(train: Callable[..., Path | None], what: str, options: Options) -> Path | None:
    """Open the recipe, train by it, and print where the weights lie.

    Args:
      train: of `dmd2_jax.training`.
      what: is trained.
      options: of the command.

    Returns:
      The file of weights; None of a dry run.
    """
    config = load_config(options.config) if options.config else _of_run(options.workdir, what)
    apply_overrides(config, options.overrides)
    path = train(
        config,
        options.workdir,
        dry_run=options.dry_run,
        profile=options.profile,
        allow_change=allowed_changes(config, options.allow_change),
    )
    if path is not None:
        print(f"{what}: {path}")
    return path


def _of_run(workdir: str, what: str) -> "ConfigDict":
    """Return the config of the run that a folder holds, which is to go on."""
    from dmd2_jax.run.folder import read_run
    from dmd2_jax.runtime.places import path_of

    command = "train-teacher" if what == "teacher" else "distill"
    if not (path_of(workdir) / "config.json").exists():
        raise Refused(
            f"no --config, and no run in --workdir={workdir} to go on with, expected one of them; "
            f"begin a run with --config=configs/digits.py or another recipe."
        )
    found, values = read_run(workdir)
    if found != command:
        raise Refused(
            f"workdir {workdir} holds a run of `{found}`, expected one of `{command}`; "
            f"`dmd2 {found} --workdir={workdir}` goes on with it, and --config=RECIPE with "
            f"another --workdir begins a {what}."
        )
    return as_recipe(values)
