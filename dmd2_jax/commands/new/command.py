"""Look at your data, and write a recipe for them and for this machine.

It proposes the resolution (images of other sizes are resized and cropped as they are
read), channels, classes, a network of the EDM family that fits, batch sizes, learning
rates and lengths, writes them with their reasons into a Python file that is yours to
change, and prints the commands that use it.

example:
  dmd2 new --data=photographs
  dmd2 new --data=photographs.zip --resolution=16 --out=small.py
  dmd2 new --source=tfds:mnist --data=~/tensorflow_datasets --dry_run

writes --out. See docs/data.md and docs/tutorials/own_photographs.md.
"""

import dataclasses

from dmd2_jax.config.flags import flag

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 new` is asked for."""

    data: str = flag(
        "a folder or zip of images, a folder a class if there are classes; an .npz; a folder of "
        ".npy, IDX or array_record files",
        default="",
        metavar="PATH",
    )
    out: str = flag("the recipe", default="my_recipe.py", metavar="FILE")
    source: str = flag(
        "what reads the data, as config.data.name: one that `dmd2 data` lists, or a module of "
        "yours; by default after the files",
        default="",
        metavar="NAME",
    )
    resolution: int | None = flag(
        "height and width of the images to train on; by default what suits data and machine",
        default=None,
    )
    overwrite: bool = flag("write over a file that is there", default=False)
    dry_run: bool = flag("print the recipe, and write nothing", default=False)


def run(options: Options) -> None:
    """Write the recipe, and print the commands that use it."""
    from dmd2_jax.commands.new.write import write_recipe

    print(write_recipe(options))
