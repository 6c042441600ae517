"""Compare a pipeline's folder, part by part, with what diffusers computes of it.

Compare a pipeline's folder, part by part, with what diffusers computes of it: tokenizers, text
encoders, the network at five times with and without a prompt or class, the autoencoder both ways,
and four sampled images. Everything is float32, one part at a time.

example:
  dmd2 verify --pipeline=stable-diffusion-xl-base-1.0
  dmd2 verify --pipeline=sdxl --weights=runs/sdxl --out=student.png

The exit code is 0 if every part agrees, and 1 if one does not, is damaged or could not be compared.
torch, diffusers and transformers are needed to compare; without them the files are read, and the
numbers checked to be finite.
"""

import dataclasses
from typing import TYPE_CHECKING

from dmd2_jax.config.flags import flag
from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.places import has_folder, path_of

if TYPE_CHECKING:
    from dmd2_jax.commands.verify.rows import Report
    from dmd2_jax.commands.verify.subject import Subject

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 verify` is asked for.

    Raises:
      Refused: if the tolerance is out of range.
    """

    pipeline: str = flag("a diffusers folder: of a pipeline, or of a network alone", metavar="DIR")
    weights: str = flag(
        "a run, or weights, in place of the network's own", default="", metavar="PATH"
    )
    out: str = flag("a picture of the images of both", default="verify.png", metavar="PNG")
    tolerance: float = flag(
        "what a difference may reach of an array's largest value; ten times that in images in 0..1",
        default=1e-3,
    )
    variant: str = flag(
        "of the weights' files, such as fp16; default: the full or the only one",
        default="",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise Refused(f"--tolerance={self.tolerance}, expected 0 to 1; try 1e-3.")


def run(options: Options) -> "Report":
    """Compare the parts, print a row of each and a verdict, and draw the images.

    Returns:
      The rows, whose `exit_code` is the command's.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if it is of a class that is not built here, or the weights are of another network.
    """
    from dmd2_jax.commands.verify.check import verify
    from dmd2_jax.commands.verify.subject import open_subject
    from dmd2_jax.pictures.grids import headed_rows

    out = path_of(options.out)
    if not has_folder(out.parent):
        raise Refused(f"--out={out} lies in no folder, expected {out.parent} to exist; create it.")
    subject = open_subject(options.pipeline, options.weights, options.variant)
    report, pictures = verify(subject, options.tolerance)
    _say_ignored(subject)
    if pictures:
        headed_rows([list(pictures.items())], out)
        print(f"images: {out}")
    print(f"verdict: {report.verdict}")
    return report


def _say_ignored(subject: "Subject") -> None:
    from dmd2_jax.commands.verify.ignored import ignored_files, ignored_keys

    for name in ignored_files(subject):
        print(f"not read: {name}")
    for part, keys in ignored_keys(subject).items():
        print(f"of no effect in {part}/config.json: {', '.join(keys)}")
