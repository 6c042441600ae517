"""Which networks of a run `dmd2 evaluate` measures."""

from pathlib import Path
from typing import NamedTuple

from dmd2_jax.config.refused import Refused
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.sampling.samplers import run_recipe

__all__ = ["Target", "run_targets"]


class Target(NamedTuple):
    """One network.

    Attributes:
      key: in front of its figures.
      which: "teacher" or "student".
      ema: the decay of the student's average that it is.
      step: of the checkpoint that has its weights; None: the run's export.
    """

    key: str
    which: str
    ema: float | None = None
    step: int | None = None


def run_targets(options: EvaluateOptions) -> list[Target]:
    """Return what the flags name of a run: all of its exports, one of them, or checkpoints.

    Args:
      options: checked flags, with a workdir.

    Raises:
      ValueError: if the run has no such network or checkpoint.
    """
    trained, which, config = run_recipe(options.workdir, options.which, options.ema)
    key = which if options.ema is None else f"{which}_ema_{options.ema:g}"
    if options.checkpoint is not None or options.all_checkpoints:
        if which != trained:
            raise Refused(
                f"--which={which} of a checkpoint, expected the {trained} that the run in "
                f"{options.workdir} trains; leave it away."
            )
        return [
            Target(f"{key}_checkpoint_{step}", which, options.ema, step) for step in _steps(options)
        ]
    if options.which is not None or options.ema is not None or trained == "teacher":
        return [Target(key, which, options.ema)]
    averages = [Target(f"student_ema_{d:g}", "student", d) for d in config.optim.ema_decays]
    return [Target("teacher", "teacher"), Target("student", "student"), *averages]


def _steps(options: EvaluateOptions) -> list[int]:
    folder = Path(options.workdir) / CHECKPOINTS
    with Checkpoints(folder, read_only=True) as kept:
        steps = kept.all_steps()
    if not steps or options.checkpoint not in (None, *steps):
        raise Refused(
            f"no checkpoint {'' if options.checkpoint is None else f'{options.checkpoint} '}in "
            f"{folder}, expected one of {steps}; choose another, or raise log.keep_every."
        )
    return steps if options.checkpoint is None else [options.checkpoint]
