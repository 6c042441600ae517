"""CLIP score through the command, of weights and scores that transformers recorded: no torch here.

`test_clip.py` compares with transformers' own model, where torch is installed.
"""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.images import png, write_folder
from tests.tiny import dmd2, refused, scratch

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusers_models" / "clip"
START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = ("a cat", "two eggs", "a red fox", "hat", "an owl", "the sea")
PREFIX = "A photo depicts"


def tokenizer_files() -> dict[str, str]:
    """A vocabulary of the letters, and of the words of the prefix; the model knows 100 tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = ["p h", "ph o", "t o</w>", "pho to</w>"]
    merges += ["d e", "de p", "dep i", "depi c", "depic t", "depict s</w>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [pair.replace(" ", "") for pair in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)} | {START: 98, END: 99}
    settings = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings |= {"model_max_length": 12, "tokenizer_class": "CLIPTokenizer"}
    return {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps(settings),
    }


@functools.cache
def model() -> Path:
    """The recorded model with a tokenizer and a preprocessor that resizes nothing."""
    pytest.importorskip("transformers")
    folder = scratch() / "clip"
    shutil.copytree(GOLDEN, folder)
    for name, text in tokenizer_files().items():
        (folder / name).write_text(text)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 24, "crop_size": 24}))
    return folder


def pixels(index: int) -> np.ndarray:
    """Return an image of one tint and some noise."""
    random = np.random.RandomState(index + 2)
    return (random.randint(0, 200, 3) + random.randint(0, 56, (24, 24, 3))).astype(np.uint8)


@functools.cache
def images() -> Path:
    """A folder of images with their captions beside them."""
    files = {f"{i}.png": png(pixels(i)) for i in range(len(CAPTIONS))}
    files |= {f"{i}.txt": text.encode() for i, text in enumerate(CAPTIONS)}
    return write_folder(scratch() / "captioned", files)


# 100 cosines of these images and captions, without and with the prefix, by transformers 5.24.0
# and torch 2.13.0: see `recorded`, which makes them again where both are installed.
COSINES = {
    "": [15.8733, 33.0732, 24.9868, 34.8072, 36.2401, -15.8057],
    PREFIX: [14.6496, 46.1691, 47.0868, 8.69019, 20.7391, -2.30623],
}


def recorded(prefix: str) -> np.ndarray:
    """Return the cosines by transformers alone."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    texts = [f"{prefix} {text}".strip() for text in CAPTIONS]
    tokens = CLIPTokenizer.from_pretrained(model())(
        texts, padding="max_length", return_tensors="pt"
    )
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    prepared = (np.stack([pixels(i) for i in range(len(CAPTIONS))]) / 255 - mean) / std
    with torch.no_grad():
        out = CLIPModel.from_pretrained(GOLDEN).eval()(
            input_ids=tokens["input_ids"],
            pixel_values=torch.from_numpy(prepared).float().permute(0, 3, 1, 2),
        )
    return 100 * np.einsum("ne,ne->n", out.image_embeds.numpy(), out.text_embeds.numpy())


def evaluate(*words: str | Path) -> dict:
    out = scratch() / "figures.json"
    words = ("--metrics=clip_score", f"--clip={model()}", f"--images={images()}", *words)
    assert dmd2("evaluate", *words, f"--out={out}") == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("prefix", COSINES)
def test_recorded_cosines_are_those_of_transformers(prefix: str) -> None:
    pytest.importorskip("torch")
    np.testing.assert_allclose(recorded(prefix), COSINES[prefix], rtol=1e-4)


def test_clip_score_equals_the_recorded_one(capsys) -> None:
    got, scores = evaluate(), np.maximum(COSINES[""], 0)
    assert min(COSINES[""]) < 0 < max(COSINES[""])  # cutting at 0 counts
    assert got["images_clip_score"] == pytest.approx(scores.mean(), rel=1e-4)
    assert got["images_clip_score_std"] == pytest.approx(scores.std(ddof=1), rel=1e-4)
    assert got["images_num_samples"] == len(CAPTIONS)
    assert got["clip"] == "clip" and "clip_prefix" not in got
    assert f"{scores.mean():.3f}" in capsys.readouterr().out


def test_clip_score_of_some_images_takes_their_own_captions() -> None:
    chosen = np.sort(np.random.RandomState(3).choice(np.arange(len(CAPTIONS)), 2, replace=False))
    got = evaluate("--num=2", "--seed=3")
    want = np.maximum(np.array(COSINES[""])[chosen], 0).mean()
    assert got["images_clip_score"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("given", [PREFIX, f"{PREFIX} "])
def test_clip_prefix_stands_before_every_caption_and_is_recorded(given: str) -> None:
    got = evaluate(f"--clip_prefix={given}")
    want = np.maximum(COSINES[PREFIX], 0).mean()
    assert want != pytest.approx(np.maximum(COSINES[""], 0).mean(), rel=0.01)
    assert got["images_clip_score"] == pytest.approx(want, rel=1e-4)
    assert got["clip_prefix"] == given.strip()


def test_help_breaks_its_examples_as_a_shell_takes_them(capsys) -> None:
    assert dmd2("evaluate", "--help") == 0
    text = capsys.readouterr().out
    assert "--metrics=clip_score,diversity \\\n      --clip=" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("flag", ["--clip=x", "--clip_prefix=x"])
def test_flags_of_clip_without_its_metric_are_refused(flag: str, capsys) -> None:
    message = refused(capsys, "evaluate", "--images=x", flag)
    assert f"{flag[:-2]} without --metrics=clip_score" in message
