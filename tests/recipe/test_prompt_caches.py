"""Prompts beside the data: what cannot pair with them is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import SourceDefaults
from dmd2_jax.recipe import prompt_caches
from tests.tiny import get_config


def source(tokens: int, encoders: str = "one") -> SimpleNamespace:
    return SimpleNamespace(null={"prompt_embeds": np.zeros((1, tokens, 3))}, text_encoders=encoders)


class Masked(SourceDefaults):
    """Two prompts with a mask, and the latents of two shapes."""

    text_encoders = ("one",)

    def __init__(self, tokens: int, sides: tuple[int, ...] = ()) -> None:
        self.tokens = tokens
        self.null = self._arrays(1)
        self.buckets = {side: Masked(tokens) for side in sides}

    def _arrays(self, rows: int) -> dict[str, np.ndarray]:
        embeds = np.ones((rows, self.tokens, 3), np.float32)
        return {"prompt_embeds": embeds, "prompt_mask": embeds[..., 0]}

    def __len__(self) -> int:
        return 2

    def examples(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return self._arrays(len(indices)) | {"latent": np.ones((len(indices), 4, 4, 2))}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (source(32, "two"), "made by the text encoders two, expected those of config.data.path"),
        (source(64), "has prompts of 64 tokens, expected the 32 of config.data.path"),
    ],
)
def test_prompts_of_another_cache_are_refused(
    prompts: SimpleNamespace, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = get_config()
    config.data.prompts = "caches/prompts"
    monkeypatch.setattr(prompt_caches.data, "load", lambda *_: prompts)
    with pytest.raises(Refused, match=said):
        prompt_caches.open_prompts(config, source(32))
    same = source(32)
    monkeypatch.setattr(prompt_caches.data, "load", lambda *_: same)
    real = source(32)
    assert prompt_caches.open_prompts(config, real) == (real, same)


@pytest.mark.parametrize("ours, theirs", [(32, 64), (64, 32)])
def test_prompts_with_a_mask_are_filled_up_to_the_longer_ones(
    ours: int, theirs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = get_config()
    config.data.prompts = "caches/prompts"
    monkeypatch.setattr(prompt_caches.data, "load", lambda *_: Masked(ours, (8, 16)))
    pair = prompt_caches.open_prompts(config, Masked(theirs, (8, 16)))
    for source, tokens in zip(pair, (theirs, ours), strict=True):
        assert source is not None and len(source) == 2 and set(source.buckets) == {8, 16}
        for one in (source, *source.buckets.values()):
            batch = one.examples(np.arange(2))
            assert one.null is not None and batch["latent"].shape == (2, 4, 4, 2)
            for arrays, rows in ((one.null, 1), (batch, 2)):
                assert arrays["prompt_embeds"].shape == (rows, 64, 3)
                expected = np.repeat((np.arange(64) < tokens)[None], rows, axis=0)
                np.testing.assert_array_equal(arrays["prompt_mask"], expected)
                np.testing.assert_array_equal(arrays["prompt_embeds"].any(axis=-1), expected)
