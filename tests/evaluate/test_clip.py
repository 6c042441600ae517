"""CLIP score through the command, against transformers' own model of random weights."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.config.load import plain
from dmd2_jax.data import to_uint8
from dmd2_jax.run.folder import open_run
from dmd2_jax.sampling.prompts import PromptSettings, pipeline_model
from tests.data.images import png, write_folder
from tests.pipelines import CAPTIONS, tiny_pipeline, vocabulary_and_merges, write_tokenizer
from tests.pipelines import drawn as sample_prompts
from tests.sampling.test_text_run import run_folder
from tests.tiny import dmd2, refused, scratch
from tests.tiny_unet import get_config

COUNT = 6


@functools.cache
def model() -> Path:
    """A tiny CLIPModel with its tokenizer and preprocessor, as transformers writes them."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(5)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    common |= {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
    vocabulary, _ = vocabulary_and_merges()
    end = vocabulary["<|endoftext|>"]
    text = common | {"vocab_size": len(vocabulary), "eos_token_id": end, "pad_token_id": end}
    text |= {"max_position_embeddings": 77, "bos_token_id": end - 1}
    vision = common | {"image_size": 24, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    folder = scratch() / "clip"
    network = CLIPModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    write_tokenizer(folder)
    settings = {"size": {"shortest_edge": 26}, "crop_size": {"height": 24, "width": 24}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(settings | {"image_processor_type": "CLIPImageProcessor", "resample": 3})
    )
    return folder


@functools.cache
def images() -> Path:
    """A folder of images, smooth enough for a resize to show, with captions."""
    folder = scratch() / "captioned"
    rows = []
    for i in range(COUNT):
        coarse = np.random.RandomState(i).randint(0, 256, (5, 5, 3)).astype(np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{i}.png")
        rows.append(json.dumps({"file_name": f"images/{i}.png", "text": CAPTIONS[2 * i]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def expected() -> np.ndarray:
    """Return 100 cosines, by transformers alone."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip import image_processing_pil_clip as processing

    tokens = CLIPTokenizer.from_pretrained(model())(
        [CAPTIONS[2 * i] for i in range(COUNT)], padding="max_length", return_tensors="pt"
    )
    pictures = [Image.open(images() / "images" / f"{i}.png") for i in range(COUNT)]
    processor = processing.CLIPImageProcessorPil.from_pretrained(model())
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = CLIPModel.from_pretrained(model()).eval()(
            input_ids=tokens["input_ids"], pixel_values=pixels
        )
    return 100 * np.einsum("ne,ne->n", out.image_embeds.numpy(), out.text_embeds.numpy())


def evaluate(*words: str | Path) -> dict:
    out = scratch() / "figures.json"
    words = ("--metrics=clip_score", f"--clip={model()}", f"--out={out}", *words)
    assert dmd2("evaluate", *words) == 0
    return json.loads(out.read_text())


def test_clip_score_equals_that_of_transformers(capsys) -> None:
    cosines = expected()
    assert cosines.min() < 0 < cosines.max()  # cutting at 0 counts
    got = evaluate(f"--images={images()}")
    scores = np.maximum(cosines, 0)
    assert got["images_clip_score"] == pytest.approx(scores.mean(), rel=1e-4)
    assert got["images_clip_score_std"] == pytest.approx(scores.std(ddof=1), rel=1e-4)
    assert "CLIP score" in capsys.readouterr().out


def test_clip_score_of_some_images_takes_their_own_captions() -> None:
    chosen = np.sort(np.random.RandomState(3).choice(np.arange(COUNT), 2, replace=False))
    got = evaluate(f"--images={images()}", "--num=2", "--seed=3")
    want = np.maximum(expected()[chosen], 0).mean()
    assert got["images_clip_score"] == pytest.approx(want, rel=1e-4)


def clip_refused(capsys, *words: str | Path) -> str:
    return refused(capsys, "evaluate", "--metrics=clip_score", *words)


def test_images_without_captions_are_refused(capsys, tmp_path) -> None:
    content = (images() / "images" / "0.png").read_bytes()
    folder = write_folder(tmp_path / "bare", {"0.png": content})
    message = clip_refused(capsys, f"--images={folder}", f"--clip={model()}")
    assert "bare has 1 images without a caption (0.png)" in message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_model_that_lacks_a_file_is_refused(name, capsys, tmp_path) -> None:
    there = {p.name: p.read_bytes() for p in model().iterdir() if p.name != name}
    folder = write_folder(tmp_path / "part", there)
    assert name in clip_refused(capsys, f"--images={images()}", f"--clip={folder}")


def test_a_preprocessor_of_another_size_is_refused(capsys, tmp_path) -> None:
    there = {p.name: p.read_bytes() for p in model().iterdir()}
    there["preprocessor_config.json"] = b'{"size": 32, "crop_size": 32}'
    folder = write_folder(tmp_path / "other", there)
    message = clip_refused(capsys, f"--images={images()}", f"--clip={folder}")
    assert "makes images of 32 pixels, expected 24" in message


@functools.cache
def prompts() -> Path:
    file = scratch() / "prompts.txt"
    file.write_text("\n".join(CAPTIONS[:3]))
    return file


def pipeline_words(*more: str | Path) -> list[str | Path]:
    return [f"--pipeline={tiny_pipeline('sd15')}", f"--prompts={prompts()}", "--steps=2", *more]


@functools.cache
def drawn(num: int) -> Path:
    """Write what `dmd2 sample` draws of these prompts, with the prompts as captions."""
    texts = [CAPTIONS[i % 3] for i in range(num)]
    model = pipeline_model(tiny_pipeline("sd15"), PromptSettings(steps=2))
    made = sample_prompts(model, texts, batch_size=num)
    files = {f"{i}.png": png(image) for i, image in enumerate(np.asarray(to_uint8(made)))}
    files |= {f"{i}.txt": text.encode() for i, text in enumerate(texts)}
    return write_folder(scratch() / "drawn", files)


def test_a_pipeline_s_images_have_the_score_of_those_that_sample_draws() -> None:
    """Five images of three prompts, over eight devices."""
    got = evaluate(*pipeline_words("--num=5"))
    want = evaluate(f"--images={drawn(5)}")
    assert got["pipeline_clip_score"] == pytest.approx(want["images_clip_score"], rel=1e-3)
    assert got["pipeline_num_samples"] == 5
    assert got["pipeline_nfe"] == 4  # two steps with guidance


def test_prompts_that_are_too_long_are_refused_by_their_lines(capsys, tmp_path) -> None:
    (tmp_path / "p.txt").write_text(f"a fox\n{'seven ' * 90}")
    words = [f"--pipeline={tiny_pipeline('sd15')}", f"--prompts={tmp_path / 'p.txt'}"]
    message = clip_refused(capsys, *words, f"--clip={model()}")
    assert "1 of 2 prompts lose their ends: " in message and "p.txt line 2 has 92" in message
    assert "expected at most 77" in message and "--cut_prompts" in message


def test_networks_of_a_text_run_have_figures_of_their_own() -> None:
    """The teacher has those of the pipeline that the run was made from."""
    words = [f"--prompts={prompts()}", "--devices=1", "--num=5", "--batch_size=5"]
    every = evaluate(f"--workdir={run_folder()}", *words)
    names = ["teacher", "student", "student_ema_0.9"]
    keys = [f"{name}_clip_score" for name in names]
    assert [key for key in every if key.endswith("_clip_score")] == keys
    assert len({every[key] for key in keys}) == 3
    assert [every[f"{name}_nfe"] for name in names] == [8, 4, 4]
    base = evaluate(f"--pipeline={tiny_pipeline('sd15')}", *words, "--steps=4", "--guidance=3")
    assert every["teacher_clip_score"] == pytest.approx(base["pipeline_clip_score"], rel=1e-6)
    assert every["teacher_guidance"] == base["pipeline_guidance"] == 3.0


def test_a_text_run_needs_prompts(capsys) -> None:
    workdir = f"--workdir={run_folder()}"
    assert "--prompts=FILE of what to draw" in refused(capsys, "evaluate", workdir)


def test_a_pipeline_needs_prompts_and_something_to_compare_with(capsys) -> None:
    pipeline = f"--pipeline={tiny_pipeline('sd15')}"
    assert f"{pipeline} without --prompts" in refused(capsys, "evaluate", pipeline)
    words = [pipeline, f"--prompts={prompts()}"]
    assert "--features=classifier without a recipe" in refused(capsys, "evaluate", *words)


def test_a_run_of_classes_takes_no_prompts(capsys, tmp_path) -> None:
    open_run(tmp_path / "run", "distill", plain(get_config()))
    words = [f"--workdir={tmp_path / 'run'}", f"--prompts={prompts()}"]
    assert "which is of classes, expected a text-to-image" in refused(capsys, "evaluate", *words)
    message = refused(capsys, "evaluate", words[0], "--cut_prompts")
    assert "--cut_prompts with" in message and "which is of classes" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline=x", "--images=y"], "--images and --pipeline together"),
        (["--images=x", "--cut_prompts"], "--cut_prompts without --pipeline or --workdir"),
        (["--images=x", "--steps=2"], "--steps=2 without --pipeline or --workdir"),
        (["--pipeline=x", "--prompts=y", "--ema=0.9"], "--ema without a run's networks"),
        (["--pipeline=nowhere", "--prompts=no.txt"], "no.txt"),
    ],
)
def test_pipelines_are_refused(words, message, capsys) -> None:
    assert message in clip_refused(capsys, f"--clip={model()}", *words)
