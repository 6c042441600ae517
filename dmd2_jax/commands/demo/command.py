"""Train, distil, sample and measure on handwritten digits, in minutes.

Train a teacher on 1,797 real handwritten digits, distil it to ONE step, sample and
measure both, and print one table. Needs no network and no accelerator.

example:
  dmd2 demo

writes into --workdir: summary.png, metrics.json, and the run folders teacher/ and student/.
The same command again resumes what was interrupted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dmd2_jax.config.flags import flag

__all__ = ["Options", "run"]

RESUMES = True


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 demo` is asked for."""

    workdir: str = flag("the folder of everything", default="runs/demo", metavar="DIR")
    config: str = flag("a recipe; the demo is made for digits", default="digits", metavar="FILE")
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> dict[str, Any]:
    """Train, distil, sample and measure; return what metrics.json holds."""
    from dmd2_jax.commands.demo.story import demonstrate

    return demonstrate(options.workdir, options.config, options.overrides)
