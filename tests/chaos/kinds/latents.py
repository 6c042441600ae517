"""Cached latents damaged."""

import functools
import json
import random
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dmd2_jax.data import Options, latents
from dmd2_jax.data.reading.sealed_shards import Layout, claim
from tests.chaos.damages import damage
from tests.chaos.engine import Try, Unavailable, asked
from tests.chaos.runs import copied
from tests.tiny import RECIPE, scratch

NAME = "cached latents damaged"
TRIES = 32
_LAYOUT = Layout({"latent": ((4, 4, 4), "float16"), "prompt_embeds": ((5, 6), "float32")})
_INFO = {"pixels": 32, "resolution": 4, "channels": 4}


def _cache(folder: Path, seed: int) -> Path:
    """Write what `dmd2 cache` does of nine images, without the encoders that it needs."""
    numbers = np.random.RandomState(seed)
    claimed = claim(folder, {"of": "chaos", "text_encoders": []}, 3)
    for number in range(3):
        examples = [
            {"latent": numbers.randn(4, 4, 4), "prompt_embeds": numbers.randn(5, 6)}
            for _ in range(3)
        ]
        claimed.write(number, [_LAYOUT.pack(it, f"text {number}") for it in examples])
    save_file({"prompt_embeds": np.zeros((1, 5, 6), np.float32)}, folder / latents.NULL_FILE)
    claimed.finish(_LAYOUT, [latents.NULL_FILE], _INFO)
    return folder


@functools.cache
def _whole() -> Path:
    try:
        return _cache(scratch() / "cache", 0)
    except ImportError as error:
        raise Unavailable(str(error)) from error


@functools.cache
def _other() -> Path:
    return _cache(scratch() / "cache", 1)


def _damaged(folder: Path, dice: random.Random) -> str:
    return damage(dice.choice(sorted(folder.iterdir())), dice)


def _swapped(folder: Path, dice: random.Random) -> str:
    one, other = dice.sample(sorted(folder.glob("shard-*")), 2)
    one.rename(folder / "x")
    other.rename(one)
    (folder / "x").rename(other)
    return "two shards swapped"


def _foreign(folder: Path, dice: random.Random) -> str:
    file = dice.choice(sorted(_other().iterdir()))
    shutil.copy(file, folder)
    return f"{file.name} of another cache"


def _mistyped(folder: Path, dice: random.Random) -> str:
    """Change what the manifest says, its seal left."""
    file = folder / "manifest.json"
    content = json.loads(file.read_text())
    key = dice.choice(sorted(content))
    content[key] = dice.choice([None, 3, "x", [], {}, 1e308, [[[]]]])
    file.write_text(json.dumps(content))
    return f"manifest.json: {key}={content[key]!r}"


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm a cache, then have it described, and read."""
    cache = copied(_whole(), folder / "cache")
    what = dice.choice([_damaged, _damaged, _damaged, _swapped, _foreign, _mistyped])(cache, dice)
    words = ("data", f"--config={RECIPE}", "--config.data.name=latents")
    words += (f"--config.data.path={cache}", "--out=unused.png")
    return asked(folder, what, *words, same=lambda: _read(cache) == _read(_whole()), kept=(cache,))


def _read(cache: Path) -> list[object]:
    source = latents.load(str(cache), "all", options=Options())
    batch = source.examples(np.arange(len(source)))
    texts = source.captions(np.arange(len(source)))
    null = source.null["prompt_embeds"].tobytes()
    return [len(source), texts, null, *(batch[name].tobytes() for name in sorted(batch))]
