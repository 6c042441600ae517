"""Convert weights between EDM .pkl, PyTorch .bin and .safetensors.

Convert weights of the original names between files. SRC is a .safetensors, PyTorch's
.bin, .pt or .pth, EDM's .pkl, hf://owner/repository/file, or the --workdir of a run; DST is
.safetensors, .bin, .pt or .pth. Nothing in SRC is executed. DST is read back, and a
forward pass with its weights must equal one with SRC's bit for bit.

example:
  dmd2 convert edm-imagenet-64x64-cond-adm.pkl teacher.safetensors
  dmd2 convert runs/student generator.bin
  dmd2 convert pytorch_model.bin student.safetensors --config=configs/imagenet64.py

Without DST, the lines of a recipe that describe the network of an EDM .pkl are printed.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dmd2_jax.config.flags import flag
from dmd2_jax.config.refused import Refused

if TYPE_CHECKING:
    from dmd2_jax.commands.convert.convert import Converted

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 convert` is asked for."""

    source: str = flag("what to read", metavar="SRC", positional=True)
    target: str = flag("the file to write", default="", metavar="DST", positional=True)
    config: str | None = flag(
        "the recipe; a run and EDM's .pkl need none", default=None, metavar="FILE"
    )
    which: str | None = flag(
        "of a run; best: what it trains, at its best; default: the one it trains",
        default=None,
        choices=("teacher", "student", "best"),
    )
    ema: float | None = flag(
        "of a run: the student's average of this decay", default=None, metavar="DECAY"
    )
    prefix: str | None = flag(
        "of the tensors to take, if SRC holds several networks", default=None, metavar="NAME."
    )
    force: bool = flag("replace DST if it exists", default=False)
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> "Converted | None":
    """Convert the file and say what was done, or print lines of a recipe.

    Returns:
      What was done; None without a target.

    Raises:
      ValueError: if a flag or what it names is refused.
      OSError: if the disk refuses, or the file read back is not what was written.
    """
    from dmd2_jax.commands.convert.convert import convert, recipe_lines
    from dmd2_jax.config.load import apply_overrides, load_config

    if options.config is None and options.overrides:
        raise Refused(
            f"--config.{next(iter(options.overrides))} changes a recipe, expected one; add "
            "--config=FILE."
        )
    if not options.target:
        print(recipe_lines(options.source))
        return None
    config = None
    if options.config is not None:
        config = load_config(options.config)
        apply_overrides(config, dict(options.overrides))
    made = convert(
        options.source,
        options.target,
        config=config,
        which=options.which,
        ema=options.ema,
        prefix=options.prefix,
        force=options.force,
    )
    print(made)
    return made
