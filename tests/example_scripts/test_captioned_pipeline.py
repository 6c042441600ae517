"""The pipeline of examples/captioned_digits, opened by those whose format it is written in."""

import functools

import numpy as np

from dmd2_jax.data import Options, digits, latents, to_model
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.text2image.image_latents import encode_images
from dmd2_jax.text2image.text_encoder import encode_prompts, read_text_encoders
from examples.captioned_digits.make import HELD_OUT, TEMPLATES, all_captions, cache_command, enlarge
from examples.captioned_digits.pipeline import reconstruct, words
from tests.captioned import NUM, made
from tests.pipelines import RESOLUTION
from tests.tiny import dmd2


@functools.cache
def pipeline():
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(made() / "pipeline")


@functools.cache
def embeddings(templates: tuple[str, ...]) -> np.ndarray:
    """[templates, 10 digits, tokens, width]."""
    encoders = read_text_encoders(made() / "pipeline")
    texts = [caption.text for caption in all_captions(templates)]
    embeds = encode_prompts(encoders, texts)["prompt_embeds"]
    return embeds.reshape(len(templates), 10, *embeds.shape[1:])


def test_transformers_finds_one_token_a_word() -> None:
    for text, _ in all_captions(TEMPLATES + HELD_OUT):
        assert len(pipeline().tokenizer(text)["input_ids"]) == len(words(text)) + 2


def test_transformers_encodes_prompts_as_the_reader_does() -> None:
    import torch

    texts = [caption.text for caption in all_captions(HELD_OUT)]
    with torch.no_grad():
        expected, _ = pipeline().encode_prompt(
            texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    actual = embeddings(HELD_OUT).reshape(expected.shape)
    np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4)


def test_diffusers_reconstructs_images_as_the_autoencoder_does() -> None:
    import torch

    images = enlarge(digits.load(split="all").images[:4])
    x = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    vae = pipeline().vae  # whose own call rounds latents to bytes, which pipelines do not
    with torch.no_grad():
        out = vae.decode(vae.encode(x).latents).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    actual = reconstruct(made() / "pipeline" / "vae", images)
    np.testing.assert_allclose(actual, (out + 1) * 127.5, atol=0.51)  # rounded to bytes


def test_diffusers_makes_an_image_of_a_caption() -> None:
    size = {"height": RESOLUTION, "width": RESOLUTION}
    out = pipeline()("a handwritten seven", num_inference_steps=2, output_type="np", **size)
    assert out.images.shape == (1, RESOLUTION, RESOLUTION, 3) and np.isfinite(out.images).all()


def test_text_encoder_tells_digits_apart_in_templates_that_it_was_not_fitted_to() -> None:
    # What attention can do: find the token that says the digit, and read it by a linear map.
    def tokens(templates: tuple[str, ...]) -> np.ndarray:
        x = embeddings(templates)
        return np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)

    fitted = tokens(TEMPLATES)
    target = np.zeros((*fitted.shape[:3], 10))
    for template, row in zip(fitted, target, strict=True):
        said = np.argmax(template.std(axis=0).sum(-1) > 1e-3)  # the first token that differs
        row[:, said] = np.eye(10)
    x, y = fitted.reshape(-1, fitted.shape[-1]), target.reshape(-1, 10)
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    read = (tokens(HELD_OUT) @ weights).max(axis=2).argmax(axis=-1)
    np.testing.assert_array_equal(read, np.tile(np.arange(10), (len(HELD_OUT), 1)))


def test_cache_command_writes_the_latents_and_captions_of_the_images() -> None:
    program, *command = cache_command(made())
    assert program == "dmd2" and dmd2(*command) == 0
    cache = latents.load(str(made() / "cache"), "all", options=Options())
    model, params = read_component(made() / "pipeline" / "vae")
    real = digits.load(split="all")
    expected = encode_images(model.module, params, to_model(enlarge(real.images[:NUM])))
    actual = cache.examples(np.arange(len(cache)))["latent"]
    np.testing.assert_allclose(actual, expected, atol=5e-3)  # float16
    classes = dict(all_captions(TEMPLATES))
    assert [classes[text] for text in cache.captions(np.arange(NUM))] == real.labels[:NUM].tolist()
