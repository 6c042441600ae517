"""From the name of a source to its examples."""

from types import ModuleType

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax.config import plugins
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Sizes, say_sizes, sides, size_of, sizes_of
from dmd2_jax.data.reading.contract import Options, Source, completed
from dmd2_jax.data.reading.resize import Resized
from dmd2_jax.data.reading.some_classes import SomeClasses

__all__ = ["available", "is_known", "load", "summaries"]

_SOURCES = "dmd2_jax.data"
_KEY = "config.data.name"


def available() -> list[str]:
    """List the names that `config.data.name` may have, in alphabetical order."""
    return plugins.available(_SOURCES)


def is_known(name: str) -> bool:
    """Return whether `config.data.name` is one of ours, or a dotted module, which may be there."""
    kind = name.partition(":")[0]
    return plugins.is_dotted(kind) or kind in available()


def summaries() -> dict[str, str]:
    """Return what each source is, in a line: its name as it is written -> its summary."""
    found = {}
    for name in available():
        source = _module(name)
        spec = getattr(source, "SPEC", "")
        found[f"{name}:{spec}" if spec else name] = (source.__doc__ or "").partition("\n")[0]
    return found


def load(data_config: ConfigDict, split: str, resolution: Sizes) -> Source:
    """Load one split of the data that a config names.

    Args:
      data_config: `config.data`: name (a file of dmd2_jax/data or a dotted module of your own, and
        its spec after a colon), path (where the files lie, for sources that read files), classes
        (those that are read; missing or (): all) and, by the defaults of `Options` where they are
        missing, test_fraction, max_corrupt, workers, resize and digest.
      split: "train", "test" or "all".
      resolution: pixels, the model's; sources pad to it or refuse, and resize if they are told to.

    Returns:
      The examples, every member of `Source` among what they offer.

    Raises:
      ValueError: if there is no such source or split, or the images do not have the resolution.
      FileNotFoundError: if files are missing.
      MissingPackageError: if the source needs a package that is not installed.
    """
    name, colon, spec = data_config.name.partition(":")
    module = _module(name)
    if colon and not hasattr(module, "SPEC"):
        raise Refused(
            f"{_KEY}={data_config.name!r}, expected {name!r}, which takes nothing after a colon; "
            "leave it away."
        )
    keys = ("test_fraction", "max_corrupt", "workers", "resize", "digest")
    options = Options(spec, **{key: data_config[key] for key in keys if key in data_config})
    dataset = completed(module.load(data_config.path, split, resolution, options), name)
    if plugins.is_dotted(name):
        _check_first(dataset)
    if len(sizes_of(resolution)) > 1 and not dataset.buckets:
        raise Refused(
            f"{dataset.name} has images of one shape, {say_sizes(dataset.resolution)}, expected "
            f"config.model.resolution={say_sizes(resolution)}; set it to that one, or write a "
            "cache of several (`dmd2 cache --resolution=512x512,448x576`)."
        )
    # Latents, of prompts or of classes, are of no other size.
    is_cache = dataset.null is not None or hasattr(dataset, "manifest")
    if dataset.resolution != resolution and options.resize != "none" and not is_cache:
        dataset = Resized(dataset, size_of(*sides(resolution)), options.resize)
    if dataset.resolution != resolution:
        (high, broad), (height, width) = sides(dataset.resolution), sides(resolution)
        how = "crop" if high >= height and broad >= width else "enlarge"
        own = say_sizes(dataset.resolution)
        what, other = "images are", f"let images be resized by `config.data.resize={how}`."
        if is_cache:
            what, other = "latents are", "write a cache of that size by `dmd2 cache --resolution=`."
        raise Refused(
            f"{dataset.name}: {what} {own} pixels wide, expected "
            f"config.model.resolution={say_sizes(resolution)}; set it to {own}, or {other}"
        )
    if classes := data_config.get("classes", ()):
        dataset = SomeClasses(dataset, classes)
    names = dataset.class_names
    if names is not None and len(names) != dataset.num_classes:
        raise Refused(
            f"{dataset.name}: {len(names)} class_names, expected {dataset.num_classes}, as many as "
            "num_classes; name each class, or none."
        )
    return dataset


def _module(name: str) -> ModuleType:
    return plugins.load_plugin(name, _SOURCES, _KEY, known=available(), needs=("load",))


def _check_first(source: Source) -> None:
    """Refuse an image source of a user's own whose first example is not as `Batch` says.

    Floats would be taken for latents and train silently; ours are tested instead.
    """
    if len(source) == 0:
        raise Refused(f"{source.name} is empty, expected at least one example; check the split.")
    if source.null is not None:
        return
    batch = source.examples(np.array([0]))
    shape = (1, *sides(source.resolution), source.channels)
    for key, dtype, expected in (("image", np.uint8, shape), ("label", np.int32, (1,))):
        array = np.asarray(batch.get(key, ()))
        if array.dtype != dtype or array.shape != expected:
            raise Refused(
                f"{source.name}: {key} of one example is {array.dtype} of shape {array.shape}, "
                f"expected {np.dtype(dtype)} of shape {expected}; examples(indices) returns "
                '{"image": [n, h, w, c] in 0..255, "label": [n] class numbers}.'
            )
    if not 0 <= int(batch["label"][0]) < source.num_classes:
        raise Refused(
            f"{source.name}: the first label is {batch['label'][0]}, expected one of "
            f"0..{source.num_classes - 1}; renumber the classes or correct num_classes."
        )
