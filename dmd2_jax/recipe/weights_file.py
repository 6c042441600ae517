"""Where a config's weights lie: a file, a run folder, a diffusers folder, the Hub."""

import functools
import logging
from pathlib import Path

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import is_component
from dmd2_jax.families.published.pipeline import NETWORKS
from dmd2_jax.recipe.exported_weights import check_whose
from dmd2_jax.run.exported import is_best, unfinished
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.places import path_of
from dmd2_jax.weights import hub

__all__ = ["teacher_file", "weights_file"]

_log = logging.getLogger(__name__)


def teacher_file(config: ConfigDict) -> Path:
    """Find the teacher's weights; without `teacher.weights` those of a family's `pipeline`.

    Raises:
      ValueError: see `weights_file`.
    """
    path = config.teacher.weights or config.model.get("pipeline", "")
    return weights_file(path, "teacher.safetensors")


def weights_file(path: str, name: str) -> Path:
    """Find a file of weights.

    Args:
      path: a file of weights (docs/weights.md), a run folder that holds one called `name`, a
        folder of a diffusers pipeline or of its network (unet/, transformer/), or
        hf://owner/repository/file, which is downloaded once.
      name: for example "teacher.safetensors"; "": no run folder is meant.

    Returns:
      The file, or the diffusers folder, which exists. That a run is not finished is said once.

    Raises:
      ValueError: if it does not, cannot be downloaded, or is another's than the run's.
    """
    if not path:
        raise Refused(
            "config.teacher.weights is empty, expected a run folder of train-teacher or a file of "
            "weights; add `config.teacher.weights=PATH`."
        )
    if hub.is_hub_path(path):
        return hub.fetch(path)
    place = path_of(path).expanduser()
    file = place / name if place.is_dir() else place
    if file.is_file() and file != place and not is_best(name) and (told := unfinished(place)):
        _warn_once(told)
    if not file.is_file() and (any((place / n).is_dir() for n in NETWORKS) or is_component(place)):
        return fetched(place)
    if not file.is_file():
        folder = f" or a run folder that holds {name}; finish its training first, or"
        raise Refused(
            f"no weights at {file}, expected a file of weights{folder if name else ';'} give "
            "another path."
        )
    here = fetched(file)
    if file != place:
        check_whose(here, place)
    return here


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning(text)
