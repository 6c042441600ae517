"""Prompts beside the data: what cannot pair with them is refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.recipe import prompt_caches
from tests.tiny import get_config


def source(tokens: int, encoders: str = "one") -> SimpleNamespace:
    return SimpleNamespace(null={"prompt_embeds": np.zeros((1, tokens, 3))}, text_encoders=encoders)


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
    assert prompt_caches.open_prompts(config, source(32)) is same
