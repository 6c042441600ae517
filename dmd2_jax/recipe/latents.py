"""Whether the latents of a cache are those of a recipe's pipeline."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Source
from dmd2_jax.families.published.latents_scale import pipeline_latents_scale
from dmd2_jax.runtime.places import path_of

__all__ = ["check_latents"]


def check_latents(config: ConfigDict, dataset: Source) -> None:
    """Refuse latents that another autoencoder of the same class scaled than the pipeline's.

    Of another class, such as a tiny one, the numbers do not compare; a cache of an older release
    says nothing.

    Args:
      config: the whole config, whose `model.pipeline` may name a folder.
      dataset: the real examples.

    Raises:
      Refused: naming both scales.
    """
    plan = getattr(getattr(dataset, "manifest", None), "plan", {})
    made_by, place = plan.get("latents_scale"), path_of(config.model.get("pipeline") or "-")
    if not made_by or not place.expanduser().is_dir():
        return
    own = pipeline_latents_scale(place.expanduser())
    if own and own["class"] == made_by.get("class") and own != made_by:
        raise Refused(
            f"config.data.path={config.data.path} has latents of {_said(made_by)}, expected "
            f"{_said(own)} as config.model.pipeline={config.model.pipeline} has them; write the "
            "cache with that pipeline, or give the pipeline that it was made by."
        )


def _said(scale: Mapping[str, Any]) -> str:
    shown = (f"{name} {value!r:.60}" for name, value in scale.items() if name != "class")
    return ", ".join(shown)
