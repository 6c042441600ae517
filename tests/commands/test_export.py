"""`dmd2 export`: diffusers opens the folder, and its images are those of our few-step sampler."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.version import __version__
from dmd2_jax.weights.state_dict import read_safetensors
from dmd2_jax.weights.weight_files import write_weights
from tests.exports import PROMPTS, TIMES, ours, student_file, words
from tests.hub import TOKEN, hub_here
from tests.pipelines import diffusers_pipeline, lcm_images, tiny_pipeline
from tests.tiny import contents, dmd2, refused, scratch


@functools.cache
def exported(kind: str) -> Path:
    """A student's pipeline; do not change it."""
    out = scratch() / "student"
    assert dmd2(*words(kind, out)) == 0
    return out


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_diffusers_makes_the_images_of_our_sampler(kind: str) -> None:
    images, noise = ours(exported(kind))
    pipe = diffusers_pipeline(exported(kind))
    expected = lcm_images(pipe, PROMPTS, noise, timesteps=list(TIMES))
    assert np.abs(images - expected).max() <= 2e-3
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.05
    # and without being told the times
    by_number = lcm_images(pipe, PROMPTS, noise, num_inference_steps=4)
    np.testing.assert_array_equal(by_number, expected)


def test_diffusers_makes_our_images_that_are_not_square() -> None:
    images, noise = ours(exported("sdxl"), shape=(8, 16))
    pipe = diffusers_pipeline(exported("sdxl"))
    expected = lcm_images(pipe, PROMPTS, noise, height=8, width=16, timesteps=list(TIMES))
    assert images.shape == expected.shape == (2, 8, 16, 3) and expected.std() > 0.05
    assert np.abs(images - expected).max() <= 2e-3


@pytest.mark.parametrize(
    "kind, name", [("sd15", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")]
)
def test_export_is_a_complete_pipeline_of_plain_files(kind: str, name: str) -> None:
    pipe = diffusers_pipeline(exported(kind))
    assert type(pipe).__name__ == name and type(pipe.scheduler).__name__ == "LCMScheduler"
    files = contents(exported(kind))
    base = contents(tiny_pipeline(kind))
    same = {path for path in base if path.split("/")[0] not in ("unet", "scheduler")}
    assert {path: files[path] for path in same - {"model_index.json"}} == {
        path: base[path] for path in same - {"model_index.json"}
    }
    assert {Path(path).suffix for path in files} == {".json", ".txt", ".safetensors", ".md"} - (
        {".txt"} if kind == "sdxl" else set()
    )


def test_export_copies_nothing_that_a_link_leads_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_pipeline("sd15"), tmp_path / "base"))
    (tmp_path / "private.json").write_text("{}")
    special = base / "tokenizer" / "special_tokens_map.json"
    special.unlink(missing_ok=True)
    special.symlink_to(tmp_path / "private.json")
    line = [w for w in words("sd15", tmp_path / "s") if "--pipeline" not in str(w)]
    assert "is a link to" in refused(capsys, *line, f"--pipeline={base}")
    assert not (tmp_path / "s").exists()


def test_export_holds_the_students_weights_and_times() -> None:
    got = read_safetensors(exported("sdxl") / "unet" / "diffusion_pytorch_model.safetensors")
    expected = read_safetensors(student_file("sdxl"))
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor)
    config = json.loads((exported("sdxl") / "scheduler" / "scheduler_config.json").read_text())
    assert recorded_times(config) == TIMES


def test_model_card_has_the_line_that_samples_it() -> None:
    card = (exported("sdxl") / "README.md").read_text()
    assert 'pipe("a red fox", timesteps=[999, 749, 499, 249], guidance_scale=0)' in card


def test_sample_takes_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", f"--pipeline={exported('sdxl')}", f"--out={tmp_path / 'x.png'}"]
    line += [f"--prompt={text}" for text in PROMPTS]
    assert dmd2(*line, "--steps=4") == 0
    plain = (tmp_path / "x.png").read_bytes()
    assert dmd2(*line, "--guidance=0") == 0  # none, as the model card has it
    assert (tmp_path / "x.png").read_bytes() == plain
    assert "steps=3, expected 4: this student's times are 999,749,499,249" in refused(
        capsys, *line, "--steps=3"
    )
    for flag in ("--guidance=5", "--negative=b"):
        assert "its teacher's guidance is in its weights" in refused(capsys, *line, flag)


def test_export_for_ddim_makes_the_images_of_one_lcm_step(tmp_path: Path) -> None:
    import torch

    for kind in ("lcm", "ddim"):
        line = words("sd15", tmp_path / kind, f"--scheduler={kind}", "--times=999")
        assert dmd2(*line) == 0
    noise = np.random.RandomState(0).standard_normal((1, 2, 8, 8, 4)).astype(np.float32)
    one = diffusers_pipeline(tmp_path / "lcm")
    expected = lcm_images(one, PROMPTS, noise, timesteps=[999])
    pipe = diffusers_pipeline(tmp_path / "ddim")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    images = pipe(
        list(PROMPTS),
        num_inference_steps=1,
        guidance_scale=0,
        latents=torch.from_numpy(noise[0].transpose(0, 3, 1, 2).copy()),
        output_type="np",
    ).images
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_export_writes_half_precision_where_it_is_told(tmp_path: Path) -> None:
    assert dmd2(*words("sd15", tmp_path / "s", "--dtype=float16")) == 0
    got = read_safetensors(tmp_path / "s" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = read_safetensors(student_file("sd15"))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(got[name], tensor.astype(np.float16))


def test_export_writes_a_base_of_pickles_and_programs_as_plain_data(tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_pipeline("sd15"), tmp_path / "base"))
    weights = base / "text_encoder" / "model.safetensors"
    write_weights(read_safetensors(weights), base / "text_encoder" / "pytorch_model.bin")
    weights.unlink()
    half = base / "vae" / "diffusion_pytorch_model.safetensors"
    half.rename(half.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (base / "unet" / "code.py").write_text("raise SystemExit")
    (base / "vae" / "code.py").write_text("raise SystemExit")
    (base / "vae" / "password.txt").write_text("not the model's")
    (base / "tokenizer" / "notes.json").write_text("{}")
    index = base / "model_index.json"
    changed = json.loads(index.read_text()) | {"extra": ["code", "Extra"]}
    index.write_text(json.dumps(changed | {"text_encoder": ["code", "CLIPTextModel"]}))
    line = [w for w in words("sd15", tmp_path / "s") if "--pipeline" not in str(w)]
    assert dmd2(*line, f"--pipeline={base}") == 0
    files, expected = contents(tmp_path / "s"), contents(exported("sd15"))
    assert files.keys() == expected.keys()
    assert files["model_index.json"] == expected["model_index.json"]
    got = read_safetensors(tmp_path / "s" / "text_encoder" / "model.safetensors")
    for name, tensor in read_safetensors(
        tiny_pipeline("sd15") / "text_encoder" / weights.name
    ).items():
        np.testing.assert_array_equal(got[name], tensor)


def test_dry_run_writes_nothing_and_push_sends_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "student"
    out.parent.mkdir()
    line = words("sd15", out, "--push=ada/sd-four-step", "--license=mit", "--private")
    with hub_here(tmp_path / "cache") as hub:
        assert dmd2(*line, "--dry_run") == 0
        said = capsys.readouterr().out
        assert f"dry run: {out}: StableDiffusionPipeline with LCM" in said
        assert "push: to ada/sd-four-step, which is new: private\n" in said
        assert list(out.parent.iterdir()) == [] and hub.files == {}
        said = refused(capsys, *line, "--license=free-beer")
        assert "the Hub refuses the header of README.md" in said and "correct --license" in said
        assert list(out.parent.iterdir()) == [] and hub.files == {}
        assert dmd2(*line) == 0
        said = capsys.readouterr().out
        assert said.endswith(f"licence: mit\npushed to {hub.address}/ada/sd-four-step\n")
    assert hub.files == {"ada/sd-four-step": contents(out)} and hub.private["ada/sd-four-step"]
    assert hub.messages == [
        "StableDiffusionPipeline with LCMScheduler, steps at 999, 749, 499, 249, by dmd2_jax "
        f"{__version__}"
    ]
    card = (out / "README.md").read_text()
    assert 'StableDiffusionPipeline.from_pretrained("ada/sd-four-step")' in card
    assert TOKEN not in said + card


# --- what is refused ---


@pytest.mark.parametrize(
    "more, message",
    [
        (("--times=",), "'', expected numbers with commas; try 999,749,499,249"),
        (("--times=999.5",), "student times [999.5], expected decreasing numbers in 1..999, whole"),
        (("--scheduler=euler",), "scheduler='euler', expected one of ('lcm', 'ddim')"),
        (("--times=249,999",), "student times [249, 999], expected decreasing numbers"),
        (("--times=1000",), "expected decreasing numbers in 1..999"),
        (("--scheduler=ddim", "--times=399"), "DDIMScheduler takes 1 steps at [999]"),
        (("--workdir=x",), "got --workdir='x' and --weights="),
        (("--ema=0.9",), "--ema or --checkpoint with --weights"),
        (("--lora", "--checkpoint=1"), "--ema or --checkpoint with --weights"),
        (("--pipeline=absent",), "absent has no model_index.json"),
        (("--weights=absent.safetensors",), "no weights at absent.safetensors"),
        (("--pipeline=",), "expected both: the teacher's pipeline"),
        (("--lora",), "no LoRA file"),
        (("--lora", "--dtype=float16"), "--lora with --dtype=float16"),
    ],
)
def test_export_refuses(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words("sd15", tmp_path / "s", *more))
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_a_folder_that_is_not_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    assert "is not empty, expected a new folder" in refused(capsys, *words("sd15", tmp_path))
    assert contents(tmp_path) == before


def test_export_refuses_weights_of_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words("sd15", tmp_path / "s", f"--weights={student_file('sdxl')}")
    assert "weights do not fit the network" in refused(capsys, *line)


def test_export_leaves_nothing_where_a_part_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_pipeline("sdxl"), tmp_path / "base"))
    shutil.rmtree(base / "text_encoder_2")
    line = words("sdxl", tmp_path / "s", f"--pipeline={base}")
    assert "has no part text_encoder_2/" in refused(capsys, *line)
    assert sorted(tmp_path.iterdir()) == [base]


def test_export_refuses_weights_that_half_precision_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = dict(read_safetensors(student_file("sd15")))
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1e6
    write_weights(tensors, tmp_path / "w.safetensors")
    line = words("sd15", tmp_path / "s", f"--weights={tmp_path / 'w.safetensors'}")
    assert "write float32 or bfloat16" in refused(capsys, *line, "--dtype=float16")
    assert not (tmp_path / "s").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("export", "--help") == 0
    said = capsys.readouterr().out
    assert "examples:\n  dmd2 export --workdir=" in said
    assert "guidance_scale=0" in said
