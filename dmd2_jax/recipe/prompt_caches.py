"""Prompts beside the data: `config.data.prompts`."""

from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Source

__all__ = ["open_prompts"]


def open_prompts(config: ConfigDict, dataset: Source) -> Source | None:
    """Open the cache of prompts that a config names; without one, the data have their own.

    Args:
      config: the whole config.
      dataset: the real examples.

    Returns:
      What a student's conditions are drawn from; None: it has classes.

    Raises:
      Refused: if it is no such cache, or another network's or of prompts of another length.
    """
    null, path = dataset.null, config.data.prompts
    if null is None:
        if path:
            raise Refused(
                f"config.data.prompts={path} with data that have classes, expected a text-to-image "
                "model; leave it away."
            )
        return None
    if not path:
        return dataset
    chosen = config.data.copy_and_resolve_references()
    chosen.path = path
    try:
        prompts = data.load(chosen, "all", config.model.resolution)
    except (ValueError, FileNotFoundError) as error:
        raise Refused(f"config.data.prompts={path}: {error}") from error
    made_by, expected = prompts.text_encoders, dataset.text_encoders
    if made_by != expected:
        raise Refused(
            f"config.data.prompts={path} was made by the text encoders {made_by}, expected those "
            f"of config.data.path, {expected}; write it with the same pipeline and text encoders."
        )
    assert prompts.null is not None  # the same text encoders'
    ours, theirs = (it["prompt_embeds"].shape[-2] for it in (prompts.null, null))
    if ours != theirs:
        raise Refused(
            f"config.data.prompts={path} has prompts of {ours} tokens, expected the "
            f"{theirs} of config.data.path; leave it away, or write both caches of prompts "
            "whose longest have as many."
        )
    return prompts
