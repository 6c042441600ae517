"""The condition that a cache's batch becomes. The source is read in tests/test_latent_cache.py."""

import numpy as np

from dmd2_jax.data.latents import condition_of

BATCH = {"latent": np.zeros((2, 3, 4, 4, 4)), "prompt_embeds": np.ones((2, 3, 5, 6))}
SDXL = {**BATCH, "pooled": np.ones((2, 3, 7)), "time_ids": np.ones((2, 3, 6))}


def test_condition_of_leaves_the_latents_out() -> None:
    assert set(condition_of(BATCH)) == {"prompt_embeds"}
    assert set(condition_of(SDXL)) == {"prompt_embeds", "pooled", "time_ids"}


def test_condition_of_gives_every_example_the_empty_prompt() -> None:
    null = {"prompt_embeds": np.arange(30.0).reshape(5, 6)}
    negative = condition_of(BATCH, null)["negative_prompt_embeds"]
    np.testing.assert_array_equal(negative, np.broadcast_to(null["prompt_embeds"], (2, 3, 5, 6)))


def test_condition_of_leaves_zeros_to_the_family() -> None:
    null = {"prompt_embeds": np.zeros((5, 6)), "pooled": np.zeros(7)}
    assert set(condition_of(SDXL, null)) == {"prompt_embeds", "pooled", "time_ids"}


def test_condition_of_takes_both_embeddings_of_a_prompt() -> None:
    null = {"prompt_embeds": np.zeros((5, 6)), "pooled": np.ones(7)}
    condition = condition_of(SDXL, null)
    assert condition["negative_pooled"].shape == (2, 3, 7)
    assert condition["negative_prompt_embeds"].shape == (2, 3, 5, 6)
