"""What the parts of a pipeline compute here, each of inputs that diffusers is given too."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.commands.verify.subject import Subject
from dmd2_jax.config.sizes import sides
from dmd2_jax.families.published.conditions import with_negative
from dmd2_jax.families.published.folder import read_component, read_component_config
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import LANGUAGE_MODELS
from dmd2_jax.networks.qwen import Qwen
from dmd2_jax.networks.t5 import T5Encoder
from dmd2_jax.text2image.image_latents import decode_latents, encode_images
from dmd2_jax.text2image.joining import join_of
from dmd2_jax.text2image.text_encoder import open_part_tokenizer, size_ids
from dmd2_jax.typing import Float, Int, PyTree

__all__ = [
    "PROMPTS",
    "Arrays",
    "Encoded",
    "classes",
    "condition",
    "drawn_condition",
    "drawn_tokens",
    "encode",
    "halves",
    "network",
    "picture",
    "through_autoencoder",
    "times_of",
    "tokens",
]

Arrays = dict[str, np.ndarray]
"""What a part made, by what it is."""

PROMPTS = (
    "a photograph of a red fox in the snow",
    "ein Haus am Meer, 1924; café, \u5bb6 and (brackets:1.2)",
    "a handwritten seven " * 150,  # longer than any encoder reads
    "A",
)
"""Of the sampled images; the empty prompt is encoded beside them."""

_TIMES = 5


def tokens(subject: Subject, pair: tuple[str, str]) -> Arrays:
    """Return what one tokenizer makes of the prompts and of the empty one.

    Raises:
      MissingPackageError: if transformers is not installed.
      Refused: if it cannot be read, or is not its text encoder's.
    """
    tokenizer, encoder = pair
    module = _encoder(subject, encoder, weights=False)[0]
    texts = (*PROMPTS, "")
    opened = open_part_tokenizer(subject.pipeline_index, tokenizer, module).fitted(texts)
    return {"ids": opened(texts).ids}


def drawn_tokens(subject: Subject, encoder: str) -> Int[np.ndarray, "n t"]:
    """Draw tokens for an encoder whose tokenizer cannot be run."""
    module = _encoder(subject, encoder, weights=False)[0]
    length = getattr(module, "context", 32)  # CLIP alone has a number of its own
    return np.random.default_rng(0).integers(module.vocabulary, size=(len(PROMPTS) + 1, length))


class Encoded(NamedTuple):
    """What one text encoder makes of tokens.

    Attributes:
      arrays: by what they are.
      features: as the joining of encoders takes them.
    """

    arrays: Arrays
    features: Any


def encode(subject: Subject, encoder: str, ids: Int[np.ndarray, "n t"]) -> Encoded:
    """Return what one text encoder makes of tokens; its weights are read, and freed.

    Raises:
      Refused: if it cannot be read.
    """
    module, params = _encoder(subject, encoder)
    features = jax.tree.map(np.asarray, jax.jit(module.apply)(params, ids))
    if isinstance(module, T5Encoder):
        return Encoded({"last state": features}, features)
    if isinstance(module, Qwen):
        model = LANGUAGE_MODELS[subject.pipeline_index.class_name]
        kept = 1 if model.filled else features.mask[..., None]
        states = {f"state {i}": features.hidden_states[i] * kept for i in model.states}
        return Encoded(states, features)
    arrays = {"last state": features.last_hidden_state, "last but one": features.hidden_states[-2]}
    if features.text_embeds is None:
        return Encoded(arrays | {"pooled": features.pooled}, features)
    return Encoded(arrays | {"projected": features.text_embeds}, features)


def _encoder(subject: Subject, encoder: str, weights: bool = True) -> tuple[Any, Any]:
    index = subject.pipeline_index
    folder, expected = index.part(encoder), index.expected(encoder)
    if not weights:
        config = read_component_config(folder)
        return PublishedModel.from_config(config, expected=expected).module, None
    model, params = read_component(
        folder, expected=expected, variant=index.variant_of(encoder), dtype=jnp.float32
    )
    return model.module, params


def condition(subject: Subject, features: list[Any]) -> Arrays:
    """Return the condition of the prompts, with what guidance goes away from.

    Args:
      subject: with a pipeline.
      features: of each text encoder.
    """
    joined = {k: np.asarray(v) for k, v in join_of(subject.pipeline_index)(features).items()}
    cond: Any = {name: array[:-1] for name, array in joined.items()}
    null: Any = {name: array[-1:] for name, array in joined.items()}
    if subject.pipeline_index.zero_null:
        null = jax.tree.map(np.zeros_like, null)
    if subject.pipeline_index.with_sizes:
        assert subject.pipeline is not None
        size = sides(subject.pipeline.resolution)
        cond["time_ids"] = np.tile(size_ids(size, (0, 0), size), (len(PROMPTS), 1))
    return {name: np.asarray(array) for name, array in with_negative(cond, null).items()}


def drawn_condition(subject: Subject) -> PyTree:
    """Draw a condition of one image, where no text encoder makes one."""
    shapes, random = subject.family.cond_shapes(1), np.random.default_rng(0)
    if not isinstance(shapes, Mapping):
        return None if shapes is None else np.array([subject.family.num_classes // 2], np.int32)
    cond = {k: random.normal(size=s.shape).astype(np.float32) for k, s in shapes.items()}
    whole = {k: np.ones_like(v) for k, v in cond.items() if k.endswith("prompt_mask")}
    return cond | whole


def classes(subject: Subject) -> Int[np.ndarray, " n"]:
    """Return the classes of the sampled images, the first and the last among them."""
    ends = np.linspace(0, subject.family.num_classes - 1, len(PROMPTS))
    return ends.round().astype(np.int32)


def times_of(subject: Subject) -> np.ndarray:
    """Return five times of the schedule, both ends among them."""
    levels = subject.family.denoiser.schedule.levels
    return levels[np.linspace(0, len(levels) - 1, _TIMES).round().astype(int)]


def halves(subject: Subject, cond: PyTree) -> dict[str, PyTree]:
    """Return the first image's condition and its twin without, as guidance calls them."""
    one = subject.family.cond(jax.tree.map(lambda x: x[:1], cond))
    if one is None:
        return {"no condition": None}
    return {"condition": one, "no condition": subject.family.denoiser.null_cond(one)}


def network(
    subject: Subject,
    cond: PyTree,
    x_t: Float[np.ndarray, "1 h w c"],
    noise: Float[np.ndarray, "s b h w c"] | None,
    tell: Callable[[], None],
) -> tuple[Arrays, np.ndarray | None]:
    """Return x_0 at five times with and without the condition, and the sampler's latents.

    Args:
      subject: whose weights are read, and freed.
      cond: of as many images as `noise` has.
      x_t: of the five times.
      noise: standard normal, for the sampler; None: nothing is sampled.
      tell: is called after every piece of work.

    Raises:
      Refused: if the weights cannot be read.
    """
    denoiser, family = subject.family.denoiser, subject.family
    params = jax.device_put(subject.load())
    arrays = {}
    for t in times_of(subject):
        for name, half in halves(subject, cond).items():
            x_0 = denoiser.x0(params, jnp.asarray(x_t), jnp.asarray([t]), half)
            arrays[f"x_0 at t={t:g}, {name}"] = np.asarray(x_0)
            tell()
    if noise is None or subject.sampler is None:
        return arrays, None
    rows = []
    for row in range(noise.shape[1]):  # one image at a time, in little memory
        picked = jax.tree.map(lambda x, row=row: x[row : row + 1], cond)
        latent = subject.sampler.run(
            params, jnp.asarray(noise[:, row : row + 1]), family.cond(picked)
        )
        rows.append(np.asarray(latent))
        tell()
    return arrays, np.concatenate(rows)


def picture(subject: Subject) -> Float[np.ndarray, "1 h w 3"]:
    """Draw a smooth picture with some noise, in [-1, 1]."""
    assert subject.pipeline is not None
    height, width = sides(subject.pipeline.resolution)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width])[:, None, None]
    waves = [np.sin(9 * x + 4 * y), np.cos(7 * y * x), x - y]
    noise = 0.1 * np.random.default_rng(0).normal(size=(height, width, 3))
    return np.clip(np.stack(waves, -1) * 0.8 + noise, -1, 1).astype(np.float32)[None]


def through_autoencoder(
    subject: Subject, latents: Float[np.ndarray, "n h w c"] | None
) -> tuple[Arrays, np.ndarray | None]:
    """Return the picture's latent and that latent's image, and the images of sampled latents.

    Raises:
      Refused: if the weights cannot be read.
    """
    pipeline = subject.pipeline
    assert pipeline is not None
    params = jax.device_put(pipeline.vae_params)
    encode, decode = (jax.jit(f, static_argnums=0) for f in (encode_images, decode_latents))
    latent = encode(pipeline.vae, params, picture(subject))
    arrays = {"latent": latent, "image": decode(pipeline.vae, params, latent)}
    images = None
    if latents is not None:
        images = np.concatenate([decode(pipeline.vae, params, x[None]) for x in latents])
    vars(pipeline).pop("vae_params")  # the cached property: the weights go
    return {name: np.asarray(x) for name, x in arrays.items()}, images
