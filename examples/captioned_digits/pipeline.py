"""A small Stable Diffusion pipeline for captioned digits, as diffusers writes one, without torch.

Every part is of a published class, so whatever reads the folder reads Stable Diffusion's:

| part         | class                | here                                                       |
|--------------|----------------------|------------------------------------------------------------|
| tokenizer    | CLIPTokenizer        | byte pairs learned from the captions: a word is one token  |
| text_encoder | CLIPTextModel        | random, frozen, scaled so that every token keeps its word  |
| vae          | AutoencoderTiny      | trained here; halves the resolution                        |
| unet         | UNet2DConditionModel | random: it is what a teacher's training begins with        |
| scheduler    | DDIMScheduler        | the settings of SD 1.5                                     |
"""

import functools
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import UInt8

from dmd2_jax.data import to_model
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.families.published.configs import SCHEDULER
from dmd2_jax.families.published.folder import read_component, write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import INDEX
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.networks.initialise import init_variables
from dmd2_jax.networks.vae_tiny import AutoencoderTiny
from dmd2_jax.run.metrics import Progress
from dmd2_jax.typing import Array, Float, Key, Params

__all__ = ["WIDTH", "VaeReport", "WriteParts", "reconstruct", "write_json", "write_pipeline"]

START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
# How CLIP's tokenizer cuts texts into words before it looks for pairs.
_WORDS = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")

WIDTH = 64
"""Of a token's embedding."""

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "block_out_channels": [24, 24],
    "decoder_block_out_channels": [24, 24],
    "encoder_block_out_channels": [24, 24],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [2, 1],
    "num_encoder_blocks": [1, 2],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": [2, 4],  # historical: the number of heads
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "cross_attention_dim": WIDTH,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}

_MODEL_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.36.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
}


WriteParts = Callable[[Path, Sequence[str], int, Key], None]
"""(folder, captions, tokens of a prompt, [2] keys) -> nothing; writes all but the autoencoder."""


class VaeReport(NamedTuple):
    """How well the autoencoder does, measured on images that it was not trained on.

    Attributes:
      psnr: of reconstructed images in decibels, of the mean squared error of all of them.
      mean, std: of the scaled latents, as a U-Net reads them.
      channel_std: [latent channels] of each channel.
    """

    psnr: float
    mean: float
    std: float
    channel_std: Float[np.ndarray, " c"]


def write_pipeline(
    folder: Path,
    captions: Sequence[str],
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    held_out: int,
    tokens: int,
    vae_steps: int,
    seed: int = 0,
    write_parts: WriteParts | None = None,
) -> VaeReport:
    """Write a complete pipeline, whose denoising network is not trained.

    Args:
      folder: made if it does not exist.
      captions: all texts whose words are to be tokens.
      images: uint8; the autoencoder learns from them.
      held_out: how many of the last ones it does not learn from, but is measured on; 1 or more.
      tokens: of a prompt, start and end among them.
      vae_steps: of the autoencoder's training.
      seed: of every random number.
      write_parts: of everything but the autoencoder; None: of a StableDiffusionPipeline.

    Raises:
      ValueError: if there are not images for both, or a caption has too many words.
    """
    if not 0 < held_out < len(images):
        raise ValueError(
            f"held_out={held_out} of {len(images)} images, expected some to learn from and some "
            "to measure on; make more images."
        )
    keys = jax.random.split(jax.random.key(seed), 3)
    (write_parts or _write_parts)(folder, captions, tokens, keys[:2])
    return _write_vae(folder / "vae", images, held_out, vae_steps, keys[2])


def _write_parts(folder: Path, captions: Sequence[str], tokens: int, keys: Key) -> None:
    """Write a StableDiffusionPipeline but for its autoencoder."""
    longest = max(captions, key=lambda text: len(words(text)))
    if len(words(longest)) + 2 > tokens:
        raise ValueError(
            f"tokens={tokens}, expected {len(words(longest)) + 2} or more, as {longest!r} has with "
            "its start and end; raise it."
        )
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    write_json(folder / INDEX, _MODEL_INDEX)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    vocabulary = write_tokenizer(folder / "tokenizer", captions, tokens)
    _write_text_encoder(folder / "text_encoder", len(vocabulary), tokens, keys[0])
    unet = PublishedModel.from_config(UNET, classes=CLASSES)
    write_component(
        unet, init_variables(unet.module, keys[1], *unet.example_inputs()), folder / "unet"
    )


def write_json(file: Path, value: Any) -> None:
    """Write a file as diffusers does."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def words(text: str) -> list[str]:
    """Cut a text as CLIP's tokenizer does: letters together, each figure alone, then the rest."""
    return _WORDS.findall(text.lower())


def byte_letters() -> list[str]:
    """Return the printable letter that stands for each byte 0 ... 255 in a vocabulary.

    Bytes that print stand for themselves, the others for letters from number 256 on.

    Source: Radford et al. 2019 (GPT-2), section 2.2; the vocab.json files of CLIP.
    """
    prints = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def learn_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Learn byte pairs until every word is one token.

    The most frequent pair comes first; of equally frequent ones the first in the alphabet.

    Source: Sennrich et al. 2016 (1508.07909), algorithm 1.
    """
    letters = byte_letters()
    counts = Counter(word for text in texts for word in words(text))
    spelled = {word: [letters[byte] for byte in word.encode()] for word in counts}
    for parts in spelled.values():
        parts[-1] += _END_OF_WORD
    merges = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merged(parts, best) for word, parts in spelled.items()}


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of a pair, from the left."""
    joined: list[str] = []
    for part in parts:
        # A part that was joined itself is no left half of the same pair: it is longer.
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def write_tokenizer(folder: Path, captions: Iterable[str], tokens: int) -> dict[str, int]:
    """Write a CLIPTokenizer's files and return its vocabulary, token -> number.

    The vocabulary is laid out as CLIP's: letters, letters that end a word, merged pairs, the start
    token, and last the end token, which also pads.

    Args:
      folder: made if it does not exist.
      captions: to learn byte pairs from.
      tokens: of every prompt.
    """
    merges = learn_merges(captions)
    letters = sorted(byte_letters())
    names = [*letters, *(letter + _END_OF_WORD for letter in letters), *map("".join, merges)]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys([*names, START, END]))}
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special)
    settings = {"do_lower_case": True, "model_max_length": tokens}
    settings |= {"tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", special | settings)
    return vocabulary


def _write_text_encoder(folder: Path, vocabulary: int, tokens: int, key: Key) -> None:
    """Write a random text encoder whose tokens keep their words through every layer.

    With CLIP's initial embeddings, of deviation 0.02, what layers add hides which word a token was:
    a linear map that finds the digit in some templates finds it in 38 % of a template left out. By
    embeddings of deviation 1 it finds 98 %: a digit's token deviates from the mean of all digits'
    by 0.7 of its size, the tokens after it by 0.2.
    """
    model = PublishedModel.from_config(
        {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "hidden_act": "quick_gelu",
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": tokens,
            "model_type": "clip_text_model",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "pad_token_id": vocabulary - 1,
            "projection_dim": WIDTH,
            "vocab_size": vocabulary,
        }
    )
    drawn = init_variables(model.module, key, *model.example_inputs())
    # From standard deviation 0.02; and from 1 / sqrt(3 fan_in), torch's, to 1 / sqrt(fan_in).
    scales = {"token_embedding": 1 / 0.02, "position_embedding": 0.25 / 0.02, "kernel": 3**0.5}
    scaled = {
        path: leaf * next((scale for name, scale in scales.items() if name in path), 1.0)
        for path, leaf in traverse_util.flatten_dict(drawn).items()
    }
    write_component(model, traverse_util.unflatten_dict(scaled), folder)


_BATCH = 64
_LEARNING_RATE = 3e-3
_LATENT_NOISE = 0.05
"""Standard deviation of what is added to latents, about 1 large, so that a decoder forgives the
errors of a diffusion model."""

_SPREAD_WEIGHT = 0.01


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _vae_step(
    module: AutoencoderTiny,
    optimizer: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    images: Array,
    key: Key,
) -> tuple[Params, optax.OptState, Array]:
    """Take a step on |decode(z + noise) - x|^2, with channels of z drawn to mean 0, deviation 1."""
    x = to_model(images)

    def loss(params: Params) -> tuple[Array, Array]:
        z = module.apply(params, x, method="encode")
        noisy = z + _LATENT_NOISE * jax.random.normal(key, z.shape)
        error = jnp.mean((module.apply(params, noisy, method="decode") - x) ** 2)
        spread = jnp.mean(z.mean((0, 1, 2)) ** 2 + (z.std((0, 1, 2)) - 1) ** 2)
        return error + _SPREAD_WEIGHT * spread, error

    gradient, error = jax.grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, error


def _write_vae(
    folder: Path, images: UInt8[np.ndarray, "n h w 3"], held_out: int, steps: int, key: Key
) -> VaeReport:
    """Train the autoencoder, scale its latents to deviation 1, write and measure it."""
    model = PublishedModel.from_config(VAE)
    module: Any = model.module
    params = init_variables(module, key, *model.example_inputs())
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, _LEARNING_RATE, 0.1))
    state = jax.jit(optimizer.init)(params)  # one program instead of one a shape
    learned, measured = images[:-held_out], images[-held_out:]
    random = np.random.RandomState(int(jax.random.key_data(key)[-1]))
    with Progress(total=steps, description="autoencoder", images_per_step=_BATCH) as progress:
        for step in range(steps):
            batch = learned[random.randint(0, len(learned), _BATCH)]
            now = jax.random.fold_in(key, step)
            params, state, error = _vae_step(module, optimizer, params, state, batch, now)
            if step % 10 == 9 or step == steps - 1:
                progress.update(step + 1, {"mse": error})
    model = PublishedModel.from_config(
        VAE | {"scaling_factor": float(1 / _round_trip(module, params, learned)[0].std())}
    )
    write_component(model, params, folder)
    latents, decoded = _round_trip(module, params, measured)
    latents *= model.config["scaling_factor"]
    error = np.mean((decoded.astype(np.float64) - measured) ** 2)
    return VaeReport(
        float(10 * np.log10(255**2 / error)),
        float(latents.mean()),
        float(latents.std()),
        latents.std(axis=(0, 1, 2)),
    )


def reconstruct(vae: Path, images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Return images after the autoencoder of this folder encoded and decoded them."""
    model, params = read_component(vae, expected=("AutoencoderTiny",))
    return _round_trip(model.module, params, images)[1]


_ROUND_TRIP_BATCH = 256


def _round_trip(
    module: AutoencoderTiny, params: Params, images: UInt8[np.ndarray, "n h w 3"]
) -> tuple[Float[np.ndarray, "n h2 w2 d"], UInt8[np.ndarray, "n h w 3"]]:
    """Return the encoder's output, before any scaling, and the decoded images."""
    module = module.clone(scaling_factor=1.0)  # it changes neither, and there is one program
    padding = -len(images) % _ROUND_TRIP_BATCH
    padded = np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
    parts = [
        _encode_and_decode(module, params, padded[i : i + _ROUND_TRIP_BATCH])
        for i in range(0, len(padded), _ROUND_TRIP_BATCH)
    ]
    latents, decoded = (np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))
    return latents, decoded


@functools.partial(jax.jit, static_argnums=0)
def _encode_and_decode(module: AutoencoderTiny, params: Params, images: Array) -> tuple:
    latents = module.apply(params, to_model(images), method="encode")
    return latents, to_uint8(module.apply(params, latents, method="decode"))
