"""Networks of randomly drawn sizes against diffusers and transformers, where they are installed.

Each is drawn by a seed, made and written by the library itself, read by us, run by both, written by
us and read again by the library.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dmd2_jax.families.published.folder import read_component, write_component
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.typing import Params
from dmd2_jax.weights.state_dict import read_safetensors
from tests.conformance.derive import nchw, nhwc, relative

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-5


class Pair(NamedTuple):
    """One network in both libraries."""

    theirs: object
    model: PublishedModel
    params: Params
    folder: Path

    def apply(self, *inputs, method=None):
        """Run ours."""
        run = jax.jit(functools.partial(self.model.module.apply, method=method))
        return run(self.params, *inputs)


def make_pair(theirs, folder: Path, **saving) -> Pair:
    """Perturb every weight, so that no layer is trivial, then save, and read the folder."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.eval()
    theirs.save_pretrained(folder, **saving)
    return Pair(theirs, *read_component(folder, classes=CLASSES), folder)


def normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def draw_unet_config(random: np.random.Generator, kind: str) -> dict:
    """Draw a U-Net: "sd1", "sd2" or "sdxl" in what it has, of any size."""
    levels = int(random.integers(2, 4))
    groups = int(random.choice([2, 4]))
    heads = [int(n) for n in random.choice([1, 2, 3], size=levels)]
    widths = [groups * heads[i] * int(random.integers(1, 3)) * 2 for i in range(levels)]
    attend = [bool(n) for n in random.integers(0, 2, size=levels)]
    attend[-1] = kind == "sdxl"
    attend[-2] = True
    config = {
        "attention_head_dim": heads,
        "block_out_channels": widths,
        "cross_attention_dim": int(random.integers(3, 9)),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attend],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]],
        "in_channels": int(random.integers(3, 6)),
        "layers_per_block": [int(n) for n in random.integers(1, 3, size=levels)],
        "norm_num_groups": groups,
        "sample_size": 8,
        "use_linear_projection": kind != "sd1",
    }
    if kind == "sd1":
        config |= {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
        config |= {"attention_head_dim": 2, "layers_per_block": 1}
    if kind == "sd2":
        config |= {"time_cond_proj_dim": 5, "upcast_attention": True, "time_embedding_dim": 24}
    if kind == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 7 + 6 * 4,
            "transformer_layers_per_block": [int(n) for n in random.integers(1, 3, size=levels)],
        }
    return config


@pytest.mark.parametrize(("kind", "seed"), [("sd1", 1), ("sd2", 2), ("sdxl", 3)])
def test_unet_of_a_drawn_size_equals_diffusers(tmp_path, kind, seed):
    random = np.random.default_rng(seed)
    config = draw_unet_config(random, kind)
    # Shards as large models have them.
    saving = {"max_shard_size": "20KB"} if kind == "sdxl" else {}
    theirs = diffusers.UNet2DConditionModel(**config)
    pair = make_pair(theirs, tmp_path, **saving)
    assert bool(list(tmp_path.glob("*.index.json"))) == bool(saving)
    sample = normal(random, 2, config["in_channels"], 8, 12)
    prompt = normal(random, 2, 5, config["cross_attention_dim"])
    times = np.asarray([3.0, 871.0], np.float32)
    added = (
        {"text_embeds": normal(random, 2, 7), "time_ids": 100 * normal(random, 2, 6)}
        if kind == "sdxl"
        else {}
    )
    guidance = normal(random, 2, 5) if kind == "sd2" else None
    with torch.no_grad():
        expected = theirs(
            torch.tensor(sample),
            torch.tensor(times),
            torch.tensor(prompt),
            timestep_cond=None if guidance is None else torch.tensor(guidance),
            added_cond_kwargs={k: torch.tensor(v) for k, v in added.items()},
        ).sample
    pooled, sizes = added.get("text_embeds"), added.get("time_ids")
    actual = pair.apply(nhwc(sample), times, prompt, pooled, sizes, guidance)
    assert relative(nchw(actual), expected.numpy()) < TOLERANCE


@pytest.mark.parametrize("seed", [4, 5])
def test_autoencoder_of_a_drawn_size_equals_diffusers(tmp_path, seed):
    random = np.random.default_rng(seed)
    levels, plain = int(random.integers(2, 4)), seed == 4
    config = {
        "block_out_channels": [4 * int(n) for n in random.integers(1, 4, size=levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": int(random.integers(3, 7)),
        "layers_per_block": int(random.integers(1, 3)),
        "norm_num_groups": 4,
        "use_quant_conv": plain,
        "use_post_quant_conv": plain,
        "mid_block_add_attention": plain,
    }
    theirs = diffusers.AutoencoderKL(**config)
    pair = make_pair(theirs, tmp_path)
    images, size = normal(random, 2, 3, 16, 8), 2 ** (levels - 1)
    latents = normal(random, 2, config["latent_channels"], 16 // size, 8 // size)
    with torch.no_grad():
        expected = theirs.encode(torch.tensor(images)).latent_dist
        decoded = theirs.decode(torch.tensor(latents)).sample
    gaussian = pair.apply(nhwc(images), method="encode")
    assert relative(nchw(gaussian.mean), expected.mean.numpy()) < TOLERANCE
    assert relative(nchw(gaussian.std), expected.std.numpy()) < TOLERANCE
    actual = pair.apply(nhwc(latents), method="decode")
    assert relative(nchw(actual), decoded.numpy()) < TOLERANCE


def test_tiny_autoencoder_of_a_drawn_size_equals_diffusers(tmp_path):
    random = np.random.default_rng(6)
    width = int(random.integers(3, 9))
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(width,) * 3,
        decoder_block_out_channels=(width + 2,) * 3,
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
        latent_channels=5,
    )
    pair = make_pair(theirs, tmp_path)
    images, latents = normal(random, 2, 3, 16, 8), normal(random, 2, 5, 4, 2)
    with torch.no_grad():
        encoded = theirs.encode(torch.tensor(images)).latents
        decoded = theirs.decode(torch.tensor(latents)).sample
    actual = pair.apply(nhwc(images), method="encode")
    assert relative(nchw(actual), encoded.numpy()) < TOLERANCE
    actual = pair.apply(nhwc(latents), method="decode")
    assert relative(nchw(actual), decoded.numpy()) < TOLERANCE


def draw_transformer(random: np.random.Generator) -> dict:
    heads = int(random.integers(1, 4))
    return {
        "hidden_size": heads * 2 * int(random.integers(1, 4)),
        "intermediate_size": int(random.integers(5, 20)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(random.integers(1, 4)),
        "projection_dim": int(random.integers(3, 9)),
    }


@pytest.mark.parametrize(
    ("kind", "seed", "act", "end"),
    [
        ("CLIPTextModel", 7, "quick_gelu", 2),
        ("CLIPTextModelWithProjection", 8, "gelu", 28),
    ],
)
def test_text_encoder_of_a_drawn_size_equals_transformers(tmp_path, kind, seed, act, end):
    random = np.random.default_rng(seed)
    config = transformers.CLIPTextConfig(
        **draw_transformer(random),
        vocab_size=30,
        max_position_embeddings=9,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=end,
    )
    theirs = getattr(transformers, kind)(config)
    pair = make_pair(theirs, tmp_path)
    ids = random.integers(3, 28, size=(3, 7))
    ids[:, 4] = 28  # the end token; the largest id that occurs
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), output_hidden_states=True)
    features = pair.apply(ids)
    assert len(features.hidden_states) == len(expected.hidden_states)
    for ours, other in zip(features.hidden_states, expected.hidden_states, strict=True):
        assert relative(ours, other.numpy()) < TOLERANCE
    assert relative(features.last_hidden_state, expected.last_hidden_state.numpy()) < TOLERANCE
    if kind == "CLIPTextModel":
        assert relative(features.pooled, expected.pooler_output.numpy()) < TOLERANCE
    else:
        assert relative(features.text_embeds, expected.text_embeds.numpy()) < TOLERANCE


def test_image_encoder_of_a_drawn_size_equals_transformers(tmp_path):
    random = np.random.default_rng(9)
    config = transformers.CLIPVisionConfig(
        **draw_transformer(random), image_size=12, patch_size=4, num_channels=2
    )
    theirs = transformers.CLIPVisionModelWithProjection(config)
    pair = make_pair(theirs, tmp_path)
    images = normal(random, 3, 2, 12, 12)
    with torch.no_grad():
        expected = theirs(torch.tensor(images))
    features = pair.apply(nhwc(images))
    assert relative(features.image_embeds, expected.image_embeds.numpy()) < TOLERANCE
    assert relative(features.last_hidden_state, expected.last_hidden_state.numpy()) < TOLERANCE


def tiny_networks() -> dict:
    """One network of every class that the library loads from a folder of ours."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 30}
    text |= {"num_hidden_layers": 1, "projection_dim": 4, "eos_token_id": 2}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4, "projection_dim": 4}
    unet = draw_unet_config(np.random.default_rng(0), "sdxl")
    return {
        "UNet2DConditionModel": lambda: diffusers.UNet2DConditionModel(**unet),
        "AutoencoderKL": lambda: diffusers.AutoencoderKL(
            block_out_channels=(4,), norm_num_groups=2
        ),
        "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
            encoder_block_out_channels=(4,) * 2,
            decoder_block_out_channels=(4,) * 2,
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "CLIPTextModel": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        "CLIPTextModelWithProjection": lambda: transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**text)
        ),
        "CLIPVisionModelWithProjection": lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**vision)
        ),
        "CLIPModel": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        ),
    }


@pytest.mark.parametrize("name", tiny_networks())
def test_written_folder_is_read_by_the_library(tmp_path, name):
    pair = make_pair(tiny_networks()[name](), tmp_path / "theirs")
    write_component(pair.model, pair.params, tmp_path / "ours")
    assert_reads(pair, tmp_path / "ours")


def test_text_encoder_written_with_the_published_prefix_is_read_by_the_library(tmp_path):
    pair = make_pair(tiny_networks()["CLIPTextModel"](), tmp_path / "theirs")
    model = dataclasses.replace(pair.model, bare_names=False)
    write_component(model, pair.params, tmp_path / "ours")
    written = read_safetensors(tmp_path / "ours" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in written)
    assert_reads(pair, tmp_path / "ours")


def assert_reads(pair: Pair, folder: Path) -> None:
    """Hold what the library reads from a folder against what it wrote itself, bit for bit."""
    again, report = type(pair.theirs).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected, actual = pair.theirs.state_dict(), again.state_dict()
    assert sorted(actual) == sorted(expected)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


def test_half_precision_folder_is_read_by_the_library(tmp_path):
    pair = make_pair(tiny_networks()["AutoencoderKL"](), tmp_path / "theirs")
    write_component(pair.model, pair.params, tmp_path / "ours", variant="fp16", dtype="float16")
    again = diffusers.AutoencoderKL.from_pretrained(
        tmp_path / "ours", variant="fp16", torch_dtype=torch.float16
    )
    for key, tensor in pair.theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor.half()), key
