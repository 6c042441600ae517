"""PickScore and HPS v2 through the command: no torch here.

The scores of HPS v2 were made by hpsv2 1.2.0's own network and preparation of images (torch
2.14.1), of `recipe(shapes, 11, 1.0)` of golden/README.md, these pictures, and the tokens of
`test_clip_plain.py`.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.conformance.derive import recipe
from tests.data.images import png, write_folder
from tests.evaluate.test_clip_plain import CAPTIONS, COSINES, images, model, tokenizer_files
from tests.tiny import dmd2, refused, scratch

HPS = [0.59959108, 0.24002326, 0.03733119, 0.61777204, 0.5122475, 0.47244391]
SIZE = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
}
CONFIG = {
    "architectures": ["CLIPModel"],
    "projection_dim": 12,
    "text_config": SIZE
    | {"vocab_size": 100, "max_position_embeddings": 12, "eos_token_id": 99, "bos_token_id": 98},
    "vision_config": SIZE | {"intermediate_size": 32, "image_size": 24, "patch_size": 8},
}


def layer_shapes(prefix: str, hidden: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a layer as OpenCLIP calls them."""
    sizes = {"attn.in_proj_": 48, "attn.out_proj.": 16, "mlp.c_fc.": hidden}
    inputs = {"mlp.c_proj.": hidden}
    shapes = {f"{prefix}{name}weight": (size, 16) for name, size in sizes.items()}
    shapes |= {f"{prefix}{name}weight": (16, size) for name, size in inputs.items()}
    shapes |= {
        f"{prefix}{name}bias": (size,) for name, size in (sizes | {"mlp.c_proj.": 16}).items()
    }
    norms = (f"{prefix}ln_{i}.{end}" for i in (1, 2) for end in ("weight", "bias"))
    return shapes | dict.fromkeys(norms, (16,))


@functools.cache
def tuned() -> tuple[Path, Path]:
    """A folder without weights, and a file of OpenCLIP's names, as HPS v2's are."""
    pytest.importorskip("transformers")
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (12, 16),
        "text_projection": (16, 12),
        "logit_scale": (),
        "token_embedding.weight": (100, 16),
        "visual.class_embedding": (16,),
        "visual.positional_embedding": (10, 16),
        "visual.proj": (16, 12),
        "visual.conv1.weight": (16, 3, 8, 8),
    }
    for name in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{name}.weight": (16,), f"{name}.bias": (16,)}
    for i in range(2):
        shapes |= layer_shapes(f"transformer.resblocks.{i}.", 64)
        shapes |= layer_shapes(f"visual.transformer.resblocks.{i}.", 32)
    folder = scratch() / "vit-h"
    files = tokenizer_files() | {
        "config.json": json.dumps(CONFIG),
        "preprocessor_config.json": json.dumps({"size": 24, "crop_size": 24}),
    }
    write_folder(folder, {name: text.encode() for name, text in files.items()})
    tensors = {name: np.asarray(it) for name, it in recipe(shapes, 11, 1.0).items()}
    tensors["attn_mask"] = np.zeros((12, 12), np.float32)  # as some of OpenCLIP's files have it
    write_safetensors(tensors, file := scratch() / "hps.safetensors")
    return folder, file


@functools.cache
def wide_images() -> Path:
    """Pictures of 36 x 20 pixels with their captions beside them."""
    files = {f"{i}.txt": text.encode() for i, text in enumerate(CAPTIONS)}
    for i in range(len(CAPTIONS)):
        coarse = np.random.RandomState(i + 20).randint(0, 256, (4, 4, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((36, 20), Image.Resampling.BICUBIC)
        files[f"{i}.png"] = png(np.asarray(picture))
    return write_folder(scratch() / "wide", files)


def test_hps_of_images_that_are_not_square_is_that_of_its_own_program(capsys) -> None:
    (folder, file), out = tuned(), scratch() / "figures.json"
    words = ("--metrics=hps_v2", f"--hps={folder}", f"--hps_weights={file}", f"--out={out}")
    assert dmd2("evaluate", f"--images={wide_images()}", *words) == 0
    got = json.loads(out.read_text())
    assert got["images_hps_v2"] == pytest.approx(np.mean(HPS), rel=1e-5)
    assert got["images_hps_v2_std"] == pytest.approx(np.std(HPS, ddof=1), rel=1e-5)
    assert (got["hps"], got["hps_weights"]) == (folder.name, file.name)
    assert f"{np.mean(HPS):.4f}" in capsys.readouterr().out


def test_pick_score_is_the_cosine_by_the_models_scale_beside_the_clip_score() -> None:
    out = scratch() / "figures.json"
    words = ("--metrics=clip_score,pick_score", f"--clip={model()}", f"--pick={model()}")
    assert dmd2("evaluate", f"--images={images()}", *words, f"--out={out}") == 0
    got, cosines = json.loads(out.read_text()), np.array(COSINES[""]) / 100
    scale = math.exp(read_safetensors(model() / "model.safetensors")["logit_scale"])
    assert got["images_pick_score"] == pytest.approx(scale * cosines.mean(), rel=1e-4)
    assert got["images_pick_score_std"] == pytest.approx(scale * cosines.std(ddof=1), rel=1e-4)
    assert got["images_clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), rel=1e-4)


def test_weights_of_another_network_are_refused_by_their_tensors(capsys, tmp_path: Path) -> None:
    folder, file = tuned()
    tensors = read_safetensors(file)
    write_safetensors({k: v for k, v in tensors.items() if k != "visual.proj"}, tmp_path / "a.st")
    other = (tmp_path / "a.st").rename(tmp_path / "a.safetensors")
    words = (f"--images={wide_images()}", "--metrics=hps_v2", f"--hps={folder}")
    out = f"--out={tmp_path / 'x.json'}"
    said = refused(capsys, "evaluate", *words, f"--hps_weights={other}", out)
    assert "a.safetensors" in said and "visual_projection.weight" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics=pick_score",), "--metrics=pick_score without --pick"),
        (("--metrics=hps_v2", "--hps_weights=x"), "--metrics=hps_v2 without --hps"),
        (("--metrics=hps_v2", "--hps=x"), "--metrics=hps_v2 without --hps_weights"),
        (("--pick=x",), "--pick without --metrics=pick_score"),
        (("--hps_weights=x",), "--hps_weights without --metrics=hps_v2"),
    ],
)
def test_a_score_and_its_model_come_together(words, message, capsys, tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'x.json'}"
    assert message in refused(capsys, "evaluate", f"--images={tmp_path}", *words, out)
