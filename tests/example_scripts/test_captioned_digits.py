"""examples/captioned_digits/make.py: its captions, its files, and its judge."""

import functools
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.data import digits, to_model
from dmd2_jax.data.reading.captions import open_captions
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.metrics.features.classifier import Training
from dmd2_jax.text2image.image_latents import encode_images
from examples.captioned_digits import judge as captioned_digits_judge
from examples.captioned_digits import make as captioned_digits
from examples.captioned_digits.judge import agreement, caption_classes, open_judge, reduce
from examples.captioned_digits.make import HELD_OUT, NAMES, TEMPLATES, all_captions, enlarge
from examples.captioned_digits.pipeline import (
    learn_merges,
    reconstruct,
    words,
    write_pipeline,
    write_tokenizer,
)
from tests.captioned import NUM, made


@functools.cache
def judge() -> captioned_digits_judge.Judge:
    return open_judge(made(), training=Training(steps=100, batch_size=64, width=16))


def said(text: str) -> list[int]:
    """The digits that a text names, in words or figures."""
    found = re.findall(r"[a-z]+|[0-9]", text)
    return [NAMES.index(w) if w in NAMES else int(w) for w in found if w in NAMES or w.isdigit()]


def test_all_captions_say_their_class_once_and_no_other() -> None:
    for text, label in all_captions(TEMPLATES + HELD_OUT):
        assert said(text) == [label], text


def test_all_captions_are_different_texts() -> None:
    texts = [caption.text for caption in all_captions(TEMPLATES + HELD_OUT)]
    assert len(set(texts)) == len(texts) == 10 * len(TEMPLATES + HELD_OUT)


def test_held_out_captions_have_no_word_that_is_not_trained_on() -> None:
    trained = {word for caption in all_captions(TEMPLATES) for word in words(caption.text)}
    assert {word for caption in all_captions(HELD_OUT) for word in words(caption.text)} <= trained


def test_images_have_the_captions_of_their_digits() -> None:
    captioned = open_captions(made() / "images")
    labels = digits.load(split="all").labels[:NUM].tolist()
    assert [said(text) for text in captioned.captions] == [[label] for label in labels]


def test_images_are_the_enlarged_digits() -> None:
    captioned = open_captions(made() / "images")
    expected = enlarge(digits.load(split="all").images[:NUM])
    read = np.stack([captioned.picture(i, 16).pixels for i in range(NUM)])
    np.testing.assert_array_equal(read, expected)


def test_caption_classes_hold_the_prompts_of_both_files() -> None:
    assert caption_classes(made()) == dict(all_captions(TEMPLATES + HELD_OUT))


def test_enlarged_digits_are_the_digits_when_reduced() -> None:
    real = digits.load(split="all").images
    error = reduce(enlarge(real)).astype(float) - real
    assert np.sqrt(np.mean(error**2)) < 16 / 4  # a quarter of one of the files' 16 greys


def test_reduce_takes_means_of_blocks_and_channels() -> None:
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, 2:4, 4:6, 0] = [[12, 24], [36, 48]]  # the mean of the twelve numbers is 10
    image[0, 14, 0] = 8  # and of a pixel of four 2
    expected = np.zeros((1, 8, 8, 1), np.uint8)
    expected[0, 1, 2], expected[0, 7, 0] = 10, 2
    np.testing.assert_array_equal(reduce(image), expected)


def test_reduce_refuses_images_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 3\), expected \[n, 16, 16, 3\]"):
        reduce(np.zeros((1, 8, 8, 3), np.uint8))


def test_judge_names_the_enlarged_digits() -> None:
    test = digits.load(split="test")
    verdict = judge()(enlarge(test.images))
    texts = [f"a handwritten {NAMES[label]}" for label in test.labels]
    assert agreement(verdict, texts, caption_classes(made()))["all"] > 0.93


def test_judge_finds_no_distance_of_the_route_to_itself() -> None:
    real = digits.load(split="all").images
    through = reconstruct(made() / "pipeline" / "vae", enlarge(real))
    assert judge()(through).fid_route == pytest.approx(0, abs=1e-4)


def test_judge_finds_more_distance_in_one_digit_than_in_all() -> None:
    real = digits.load(split="all")
    everything = judge()(enlarge(real.images))
    sevens = judge()(enlarge(real.images[real.labels == 7]))
    assert sevens.fid_real > 10 * everything.fid_real


def test_agreement_counts_each_digit() -> None:
    classes = {"a two": 2, "a three": 3}
    verdict = captioned_digits_judge.Verdict(np.array([2, 3, 3, 3]), 0.0, 0.0)
    shares = agreement(verdict, ["a two", "a two", "a three", "a three"], classes)
    assert shares == {"all": 0.75, "2": 0.5, "3": 1.0}


def test_agreement_refuses_captions_that_it_does_not_know() -> None:
    verdict = captioned_digits_judge.Verdict(np.array([2]), 0.0, 0.0)
    with pytest.raises(ValueError, match="a fox"):
        agreement(verdict, ["a fox"], {"a two": 2})


def test_learn_merges_joins_the_most_frequent_pair_first() -> None:
    # of "abc" three times and "bc" once: b c</w> 4 times, a b 3 times, then a bc</w>
    assert learn_merges(["abc abc", "abc bc"]) == [("b", "c</w>"), ("a", "bc</w>")]


def test_tokenizer_has_a_token_for_every_word(tmp_path: Path) -> None:
    texts = [caption.text for caption in all_captions(TEMPLATES)]
    vocabulary = write_tokenizer(tmp_path, texts, tokens=16)
    assert all(f"{word}</w>" in vocabulary for text in texts for word in words(text))
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == vocabulary


def test_pipeline_opens_as_the_family_with_its_published_diffusion() -> None:
    family, params = stable_diffusion.read(made() / "pipeline")
    assert family.image_shape == (8, 8, 4)
    # SD 1.5: the cumulative product of 1 - beta at the last of 1,000 times
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    last = family.denoiser.schedule.alpha(jnp.array([999]))
    assert float(last[0]) == pytest.approx(np.sqrt(np.prod(1 - betas)), rel=1e-4)
    assert params


def test_autoencoder_has_latents_of_deviation_1() -> None:
    model, params = read_component(made() / "pipeline" / "vae")
    real = to_model(enlarge(digits.load(split="all").images[:NUM]))
    assert np.std(encode_images(model.module, params, real)) == pytest.approx(1, rel=0.1)


def test_write_pipeline_refuses_captions_longer_than_its_prompts(tmp_path: Path) -> None:
    images = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"tokens=4, expected 5 or more, as 'a handwritten seven'"):
        write_pipeline(tmp_path, ["a handwritten seven"], images, held_out=1, tokens=4, vae_steps=1)


def test_write_images_refuses_more_digits_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--num=1798, expected 2\.\.1797"):
        captioned_digits.write_images(tmp_path, num=1798)
