"""Write pairs of noise and teacher's sample, for a student's initialisation.

Sample the teacher of a recipe distill.regression_pairs times; write noise and samples
into a folder. A one-step student of SDXL starts from a regression on such pairs.

example:
  dmd2 make-pairs --config=configs/sdxl_one_step_start.py --out=pairs
  dmd2 distill --config=configs/sdxl_one_step_start.py --workdir=runs/start \\
      --config.distill.pairs=pairs
  dmd2 distill --config=configs/sdxl_one_step.py --workdir=runs/sdxl \\
      --config.distill.start_from=runs/start

writes into --out: pairs.json, noise_*.npy, x_0_*.npy. A killed command loses the file
that it was writing; the same command again goes on.
"""

import dataclasses
from collections.abc import Mapping

from dmd2_jax.config.flags import flag
from dmd2_jax.config.load import apply_overrides, load_config

__all__ = ["Options", "run"]

RESUMES = True


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 make-pairs` is asked for."""

    config: str = flag("a recipe", metavar="FILE")
    out: str = flag("the pairs; new, or to go on", metavar="DIR")
    dry_run: bool = flag("check everything, print the size, and stop", default=False)
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> None:
    """Make a teacher's pairs."""
    from dmd2_jax.training.pairs import write_pairs

    config = load_config(options.config)
    apply_overrides(config, options.overrides)
    print(write_pairs(config, options.out, dry_run=options.dry_run))
