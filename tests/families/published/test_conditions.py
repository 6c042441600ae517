"""Conditions and their twins without a prompt."""

import numpy as np
import pytest

from dmd2_jax.families.published.conditions import null_conditions


def test_negative_prompts_without_their_mask_are_refused() -> None:
    parts = ("prompt_embeds", "prompt_mask")
    cond = {"prompt_embeds": np.ones((1, 4, 3)), "prompt_mask": np.ones((1, 4))}
    negative = {f"negative_{name}": 0.5 * array for name, array in cond.items()}
    twin = null_conditions(parts, {})(cond | negative)
    np.testing.assert_array_equal(twin["prompt_mask"], negative["negative_prompt_mask"])
    del negative["negative_prompt_mask"]
    with pytest.raises(ValueError, match="expected negative_prompt_mask beside"):
        null_conditions(parts, {})(cond | negative)
