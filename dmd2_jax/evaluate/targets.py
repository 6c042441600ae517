"""Which networks of a run `dmd2 evaluate` measures."""

from collections.abc import Sequence

from dmd2_jax.config.refused import Refused
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.sampling.runs import Run

__all__ = ["run_targets"]


def run_targets(options: EvaluateOptions, run: Run) -> list[tuple[str, Run]]:
    """Return what the flags name of a run: all of its exports, one of them, or checkpoints.

    Args:
      options: checked flags.
      run: the run.

    Returns:
      (name in front of the figures, the run with that network) of each.

    Raises:
      ValueError: if the run has no such network or checkpoint.
    """
    which, ema = options.which or run.trained, options.ema
    key = which if ema is None else f"{which}_ema_{ema:g}"
    if which == "best":
        chosen = run.choose(which)
        return [(chosen.key, chosen)]
    if options.weights:
        return [(which, run.choose(which, weights=options.weights))]
    if options.checkpoint is not None or options.all_checkpoints:
        if which != run.trained:
            raise Refused(
                f"`which={which}` of a checkpoint, expected the {run.trained} that the run in "
                f"{options.workdir} trains; leave it away."
            )
        return [
            (f"{key}_checkpoint_{step}", run.choose(which, ema, checkpoint=step))
            for step in _steps(options, run)
        ]
    if options.which is not None or ema is not None or run.trained == "teacher":
        return [(key, run.choose(which, ema))]
    averages = [
        (f"student_ema_{decay:g}", run.choose("student", decay))
        for decay in run.config.optim.ema_decays
    ]
    return [("teacher", run.choose("teacher")), ("student", run.choose("student")), *averages]


def _steps(options: EvaluateOptions, run: Run) -> Sequence[int]:
    steps = run.checkpoints()
    if not steps or options.checkpoint not in (None, *steps):
        raise Refused(
            f"no checkpoint {'' if options.checkpoint is None else f'{options.checkpoint} '}in "
            f"{run.workdir / CHECKPOINTS}, expected one of {steps}; choose another, or raise "
            "log.keep_every."
        )
    return steps if options.checkpoint is None else [options.checkpoint]
