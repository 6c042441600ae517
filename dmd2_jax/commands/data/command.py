"""List the data sources, check one from end to end, or write it as array_record.

Without --config, list the sources: the values of config.data.name.

With --config, read every image of the data that it names, and print counts, shapes, a
histogram of the classes and the files that cannot be decoded; the first images go to a
PNG. With --write, write them as array_record shards, the fastest source there is.

example:
  dmd2 data --config=digits
  dmd2 data --config=digits --config.data.name=image_folder \\
    --config.data.path=images.zip --config.model.resolution=64
  dmd2 data --config=imagenet64 --classes
  dmd2 data --config=digits --write=shards

writes --out, or the new folder --write: info.json and *.array_record. See docs/data.md.
"""

import dataclasses
from collections.abc import Mapping

from dmd2_jax.config.flags import flag
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 data` is asked for."""

    config: str | None = flag("a recipe; its config.data counts", default=None, metavar="FILE")
    out: str = flag("the first images", default="data.png", metavar="PNG")
    write: str | None = flag("write array_record there, and no PNG", default=None, metavar="DIR")
    encoding: str = flag(
        "of the images that --write writes: raw is faster to read, png smaller",
        default="raw",
        choices=("raw", "png"),
    )
    classes: bool = flag("print the number and the name of every class too", default=False)
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run(options: Options) -> None:
    """List, check or write data."""
    from dmd2_jax.commands.data.inspect import check_source, list_sources, write_shards

    if options.config is None:
        if options.overrides or options.write:
            raise Refused(
                "`dmd2 data` has no --config, expected --config=FILE in order to check or write a "
                "source; add it."
            )
        print(list_sources())
        return
    config = load_config(options.config)
    apply_overrides(config, options.overrides)
    if options.write:
        print(write_shards(config, options.write, encoding=options.encoding))
    elif check_source(config, options.out, classes=options.classes):
        print(f"first images: {options.out}")
