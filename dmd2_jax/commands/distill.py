"""Distil a teacher into a student of one or a few steps.

example:
  dmd2 distill --config=configs/digits.py --workdir=runs/student \\
      --config.teacher.weights=runs/teacher

writes into --workdir: config.json, data.json, metrics.jsonl, speed.jsonl, curves.png,
  grid_*.png, scores_*.png, progress.gif, checkpoints/, student.safetensors and one
  student_ema_DECAY.safetensors for each average.

The same command again, or --workdir alone, resumes where the run stopped. Ctrl-C saves
first; so does SIGTERM. A folder that holds a run of another config is refused, unless what differs
is named by --allow_change. docs/durability.md has the details.
"""

from pathlib import Path

from dmd2_jax.commands.train_teacher import Options, train_by

__all__ = ["Options", "run"]

RESUMES = True
SEVERAL = True


def run(options: Options) -> Path | None:
    """Distil a teacher; return the file of the student's weights, None of a dry run."""
    from dmd2_jax.training.student import train

    return train_by(train, "student", options)
