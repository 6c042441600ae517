"""The condition that a cache's batch becomes. commands/test_cache.py reads it."""

import numpy as np

from dmd2_jax.data import labels_of

BATCH = {"latent": np.zeros((2, 3, 4, 4, 4)), "prompt_embeds": np.ones((2, 3, 5, 6))}
SDXL = {**BATCH, "pooled": np.ones((2, 3, 7)), "time_ids": np.ones((2, 3, 6))}


def test_labels_of_leaves_the_latents_out() -> None:
    assert set(labels_of(BATCH)) == {"prompt_embeds"}
    assert set(labels_of(SDXL)) == {"prompt_embeds", "pooled", "time_ids"}
