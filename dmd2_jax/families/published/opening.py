"""A published network's folder -> the family that builds it, whichever that is."""

import importlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dmd2_jax.config import plugins
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.typing import Params

if TYPE_CHECKING:
    from dmd2_jax.families.published.family import PublishedFamily

__all__ = ["read"]

_FAMILIES = "dmd2_jax.families"
_PARTS = ("transformer", "unet")
_NO_CLASS = (
    "give a folder that diffusers wrote. EDM's networks, runs and single files have none: "
    "`families.NAME.build(MODEL)`, with a recipe's `config.model`, is their family, and its "
    "`load(FILE)` reads the weights"
)


def read(folder: str | os.PathLike, **options: Any) -> tuple["PublishedFamily", Params]:
    """Read a diffusers network with its weights, by the family whose module names its class.

    A family names the classes of config.json that it reads as `READS`.

    Args:
      folder: a pipeline's, or that of the network alone; then the noise schedule is the family's
        own default.
      options: what the family's own `read` takes: resolution, dtype, remat, variant.

    Returns:
      (the family, its weights); `family.denoiser.x0(params, x_t, t, cond)` calls it.

    Raises:
      Refused: if no family reads such a class, or what the family refuses.
    """
    path = fetched(folder)
    own = next((path / part for part in _PARTS if (path / part).is_dir()), path)
    if not (own / "config.json").is_file():
        raise Refused(f"{own} has no config.json, expected one with a class; {_NO_CLASS}.")
    name = read_component_config(own).get("_class_name")
    known: list[str] = []
    for module in _readers():
        if name in module.READS:
            return module.read(folder, **options)
        known += module.READS
    remedy = _NO_CLASS if name is None else "use a model of one of these"
    raise Refused(f"{own} is of class {name!r}, expected one of {sorted(known)}; {remedy}.")


def _readers() -> Iterator[ModuleType]:
    """Yield the families that read folders."""
    for name in plugins.available(_FAMILIES, packages=True):
        module = importlib.import_module(f"{_FAMILIES}.{name}")
        if hasattr(module, "READS"):
            yield module
