"""Z-Image's pipeline of examples/captioned_digits, all the way, and opened by those who read it."""

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.text2image.text_encoder import encode_prompts, read_text_encoders
from examples.captioned_digits.make import HELD_OUT, TEMPLATES, all_captions
from tests.captioned import made
from tests.tiny import dmd2, scratch

TEXTS = [caption.text for caption in all_captions(HELD_OUT)]


def folder() -> Path:
    return made("z_image") / "pipeline"


@functools.cache
def pipeline():
    import diffusers

    return diffusers.ZImagePipeline.from_pretrained(folder())


def test_a_caption_in_its_chat_is_read_in_32_tokens_and_by_its_words() -> None:
    encoders = read_text_encoders(folder())
    condition = encode_prompts(encoders.fitted(TEXTS), TEXTS)
    mask = np.asarray(condition["prompt_mask"])
    assert mask.shape == (len(TEXTS), 32)  # the fewest that the network takes
    counts = {len(text.split()) for text in TEXTS}
    assert {int(row.sum()) for row in mask} <= {8 + count for count in counts}
    # The token that says the digit tells it, whatever the layers add.
    said = np.asarray(condition["prompt_embeds"])[:10, 3:9].reshape(10, -1)
    apart = np.linalg.norm(said[:, None] - said, axis=-1)[~np.eye(10, dtype=bool)]
    assert apart.min() > 0.5 * apart.max()


def test_transformers_finds_the_tokens_that_are_found_here() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder() / "tokenizer")
    ours = read_text_encoders(folder()).tokenizers[0]
    for text, _ in all_captions(TEMPLATES + HELD_OUT):
        chat = [{"role": "user", "content": text}]
        said = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert said == f"{ours.model.before}{text}{ours.model.after}"
        row = ours([text]).ids[0]
        assert theirs(said)["input_ids"] == row[row >= 0].tolist()


def test_diffusers_encodes_prompts_and_makes_an_image() -> None:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected, _ = pipeline().encode_prompt(list(TEXTS[:3]), do_classifier_free_guidance=False)
    actual = encode_prompts(read_text_encoders(folder()).fitted(TEXTS), TEXTS[:3])
    for row, theirs in zip(np.asarray(actual["prompt_embeds"]), expected, strict=True):
        np.testing.assert_allclose(row[: len(theirs)], theirs.numpy(), atol=1e-4)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
    (image,) = pipeline()(["a handwritten seven"], **size).images
    assert image.shape == (16, 16, 3) and np.isfinite(image).all()


def test_its_recipe_trains_distils_and_draws() -> None:
    data, out = made("z_image"), scratch()
    cache = f"--out={out / 'cache'}"
    words = [f"--pipeline={data / 'pipeline'}", f"--images={data / 'images'}"]
    assert dmd2("cache", *words, cache, "--resolution=16") == 0
    common = ["--config=captioned_z_image", f"--config.data.path={out / 'cache'}"]
    common += [f"--config.model.pipeline={data / 'pipeline'}", "--config.mesh.data=1"]
    common += ["--config.log.teacher_grid_every=100", "--config.log.grid_every=100"]
    # Less to compile and to draw.
    common += ["--config.model.scan_layers=True", "--config.teacher.sampler_steps=2"]
    common += ["--config.optim.ema_decays=()"]
    teacher = [*common, "--config.teacher.steps=3", "--config.teacher.batch_size=4"]
    assert dmd2("train-teacher", *teacher, f"--workdir={out / 'teacher'}") == 0
    student = [*common, "--config.distill.cycles=2", "--config.distill.batch_size=4"]
    student += ["--config.distill.critic_turns=1", f"--config.teacher.weights={out / 'teacher'}"]
    assert dmd2("distill", *student, f"--workdir={out / 'student'}") == 0
    rows = read_metrics(out / "student" / "metrics.jsonl")
    kinds = ("generator_loss", "critic_loss", "gan_generator_loss")
    assert all(np.isfinite(row[kind]) for row in rows for kind in kinds)
    assert tuple(open_run(out / "student").config.distill.student_times) == (1, 0.75, 0.5, 0.25)
    file = out / "seven.png"
    drawn = ["sample", f"--workdir={out / 'student'}", f"--prompt={TEXTS[0]}", f"--out={file}"]
    assert dmd2(*drawn) == 0
    assert np.asarray(Image.open(file)).std() > 5
    exported = out / "exported"
    assert dmd2("export", f"--workdir={out / 'student'}", f"--out={exported}") == 0
    drawn = [f"--pipeline={exported}", f"--prompt={TEXTS[0]}", f"--out={out / 'again.png'}"]
    assert dmd2("sample", *drawn) == 0
    np.testing.assert_array_equal(Image.open(out / "again.png"), Image.open(file))
