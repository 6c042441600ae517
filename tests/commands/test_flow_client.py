"""The whole way of a user of published flows, without torch: cache, distil, sample, export.

test_export_flow.py has the rest of it, in diffusers.
"""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.recipe.open import build_family
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.weights.state_dict import read_safetensors
from tests import tiny
from tests.data.images import write_folder
from tests.flow_pipelines import CAPTIONS, RESOLUTION, flow_pipeline, photos
from tests.tiny import contents, dmd2, refused, scratch

RECIPE = Path(__file__).resolve()
KINDS = ("sd3", "flux", "flux2_klein", "z_image", "qwen_image")
PROMPTS = (CAPTIONS[3], CAPTIONS[8])
NO_GAN = ("--config.distill.gan_generator_weight=None", "--config.distill.gan_critic_weight=None")
STEPS = {"flux": (1.0,), "flux2_klein": (1.0, 0.8318214)}
STEPS |= dict.fromkeys(("sd3", "z_image", "qwen_image"), (1.0, 0.75))
"""Two equal parts, shifted by 3, or FLUX.2's exp(mu) at 36 tokens and 50 steps; FLUX.1's one."""
DECOUPLED = ("--config.distill.objectives=guidance_augmentation:guidance=4",)
LORA = ("--config.distill.lora_rank=3", *NO_GAN)


def get_config() -> ConfigDict:
    """Return a config that moves a tiny pipeline's weights in two cycles, and draws nothing."""
    config = tiny.shared_config("edm")  # of which nothing is left on the command line
    config.name = "tiny_flow"
    config.data.name = "latents"
    config.distill.denoising_weight = "flow"
    config.distill.cycles = 2  # in the first the critic is still the teacher
    config.distill.critic_turns = 1
    config.distill.batch_size = 4
    config.distill.shared_pass = True  # less to compile
    config.distill.student_times = ()
    config.optim.generator_lr = 1e-2
    config.optim.critic_lr = 1e-2
    config.optim.ema_decays = ()
    config.log.grid_every = 100
    return config


def distilled(kind: str, pipeline: Path, images: Path, side: int, *more: str) -> Path:
    """Cache images with captions by a pipeline and distil its teacher on them."""
    cache, run = scratch() / "cache", scratch() / "run"
    size = f"--resolution={2 * side}"
    words = ["cache", f"--pipeline={pipeline}", f"--images={images}", f"--out={cache}", size]
    assert dmd2(*words) == 0
    words = ["distill", f"--config={RECIPE}", f"--workdir={run}", f"--config.data.path={cache}"]
    words += [f"--config.model.family={kind}", f"--config.model.pipeline={pipeline}"]
    assert dmd2(*words, f"--config.model.resolution={side}", *more) == 0
    rows = read_metrics(run / "metrics.jsonl")
    assert all(np.isfinite(row["generator_loss"] + row["critic_loss"]) for row in rows)
    return run


@functools.cache
def student_run(kind: str) -> Path:
    """SD 3 and Qwen-Image with guidance, that with a GAN; Z-Image decoupled; FLUX as adapters.

    Klein's critic is adapters too.
    """
    more = {
        "sd3": ("--config.distill.student_steps=2", "--config.distill.guidance=3.0"),
        "flux": ("--config.distill.student_steps=1", *LORA),
        "flux2_klein": (
            *("--config.distill.student_steps=2", "--config.distill.guidance=3.0"),
            *LORA,
            "--config.distill.lora_critic=True",
        ),
        "z_image": ("--config.distill.student_steps=2", *DECOUPLED, *NO_GAN, *_longer_prompts()),
        "qwen_image": (
            "--config.distill.student_steps=2",
            "--config.distill.guidance=3.0",
            *NO_GAN,
        ),
    }[kind]
    return distilled(kind, flow_pipeline(kind), photos(), RESOLUTION // 2, *more)


def _longer_prompts() -> tuple[str, ...]:
    """Cache Z-Image's prompts of more tokens than the captions have, which are then filled up."""
    file, out = scratch() / "prompts.txt", scratch() / "prompts"
    file.write_text("\n".join([*CAPTIONS, 3 * CAPTIONS[3]]))
    pipeline = flow_pipeline("z_image")
    assert dmd2("cache", f"--pipeline={pipeline}", f"--prompts={file}", f"--out={out}") == 0
    return (f"--config.data.prompts={out}",)


@functools.cache
def exported(kind: str, *more: str) -> Path:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={student_run(kind)}", f"--out={out}", *more) == 0
    return out


def pixels(*words: object) -> np.ndarray:
    """Sample by the command and read the picture."""
    out = scratch() / "x.png"
    assert dmd2("sample", *words, *(f"--prompt={text}" for text in PROMPTS), f"--out={out}") == 0
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("kind", KINDS)
def test_export_of_a_distilled_student_is_sampled_as_its_run(kind: str) -> None:
    run, out = student_run(kind), exported(kind)
    images = pixels(f"--workdir={run}")
    np.testing.assert_array_equal(images, pixels(f"--pipeline={out}"))
    assert images.std() > 5
    got = read_safetensors(out / "transformer" / "diffusion_pytorch_model.safetensors")
    teacher = flow_pipeline(kind) / "transformer" / "diffusion_pytorch_model.safetensors"
    before = read_safetensors(teacher)
    moved = [name for name in before if np.abs(got[name] - before[name]).max() > 1e-3]
    assert len(moved) > 5 and got.keys() == before.keys()
    trained = read_metrics(run / "metrics.jsonl")[-1]
    assert ("gan_generator_loss" in trained) == (kind == "sd3")


@pytest.mark.parametrize("kind", KINDS)
def test_export_has_the_times_that_the_run_was_trained_with(kind: str) -> None:
    folder = exported(kind)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert recorded_times(scheduler) == STEPS[kind] and scheduler["shift"] == 1.0
    card = (folder / "README.md").read_text()
    scale = "guidance_scale=3.5" if kind == "flux" else "guidance_scale=0"
    scale = "true_cfg_scale=1.0" if kind == "qwen_image" else scale
    size = f"height={RESOLUTION}, width={RESOLUTION}"
    prompt = f'{"prompt=" if kind == "flux2_klein" else ""}"a red fox"'
    call = f"pipe({prompt}, {size}, sigmas={list(STEPS[kind])}, {scale})"
    assert call in card and "torch.manual_seed(0)" in card
    its_own = ("Give a fresh list of prompts", "`guidance_scale` above 0 is guidance here")
    assert [words in card for words in its_own] == [kind == "z_image"] * 2
    more = {"README.md", "digests.json"}
    assert set(contents(flow_pipeline(kind))) | more == set(contents(folder))
    index = json.loads((folder / "model_index.json").read_text())
    assert index.get("is_distilled", False) == (kind == "flux2_klein")


def test_sample_refuses_an_export_of_which_a_file_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(exported("sd3"), folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"shift": 1.0', '"shift": 3.0'))
    words = ("sample", f"--pipeline={folder}", "--prompt=a", f"--out={tmp_path / 'x.png'}")
    assert dmd2(*words) == 2
    said = capsys.readouterr().err
    assert "scheduler/scheduler_config.json is not as it was written" in said
    assert "remove digests.json" in said and not (tmp_path / "x.png").exists()


def test_export_of_flux_adapters_has_the_names_that_diffusers_loads() -> None:
    file = exported("flux", "--lora") / "pytorch_lora_weights.safetensors"
    tensors = read_safetensors(file)
    names = {
        f"transformer.{layer}.lora_{end}.weight"
        for layer in (
            *(f"transformer_blocks.0.attn.{it}" for it in ("to_q", "to_out.0", "add_q_proj")),
            "transformer_blocks.0.ff.net.0.proj",
            "single_transformer_blocks.0.attn.to_v",
        )
        for end in "AB"
    }
    assert names < tensors.keys()
    assert all(name.startswith("transformer.") for name in tensors)


def test_adapters_of_an_export_are_merged_into_a_teacher() -> None:
    config = open_run(student_run("flux")).config
    config.teacher.lora = str(exported("flux", "--lora") / "pytorch_lora_weights.safetensors")
    family = build_family(config)
    merged = family.to_state_dict(load_teacher(config, family))
    expected = read_safetensors(
        exported("flux") / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    for name, tensor in expected.items():
        np.testing.assert_allclose(merged[name], tensor, atol=1e-6)


@pytest.mark.parametrize("kind, tokens", [("z_image", 96), ("flux2_klein", 512)])
def test_cache_is_as_long_as_its_longest_prompt_needs(
    kind: str, tokens: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 19 tokens and 57 bytes, filled up to 32s; what fills FLUX.2-klein's up is read."""
    file, out = scratch() / "prompts.txt", scratch() / "prompts"
    file.write_text("\n".join([*CAPTIONS, 3 * CAPTIONS[3]]))
    pipeline = flow_pipeline(kind)
    words = ["cache", f"--pipeline={pipeline}", f"--prompts={file}", f"--out={out}", "--dry_run"]
    assert dmd2(*words) == 0
    said = capsys.readouterr().out
    assert re.search(rf"prompt_embeds +float16 +\[{tokens}, ", said)
    assert ("prompt_mask" in said) == (kind == "z_image")


def test_a_cache_goes_on_with_latents_of_one_scale_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = cached(flow_pipeline("sd3"), f"--resolution={RESOLUTION}")
    assert dmd2(*words) == 0
    other = changed("sd3", "vae/config.json", scaling_factor=0.2)
    words[1] = f"--pipeline={other}"
    assert "latents_scale {'class': 'AutoencoderKL', 'scaling_factor': 1.53" in refused(
        capsys, *words
    )
    cache = next(str(word).removeprefix("--out=") for word in words if "--out=" in str(word))
    run = [f"--config={RECIPE}", f"--workdir={scratch() / 'run'}", f"--config.data.path={cache}"]
    of = ["--config.model.family=sd3", "--config.distill.student_steps=1", *NO_GAN]
    run += [*of, f"--config.model.resolution={RESOLUTION // 2}"]
    said = refused(capsys, "distill", "--dry_run", *run, f"--config.model.pipeline={other}")
    assert "latents of scaling_factor 1.5305, shift_factor 0.0609, expected scaling_fac" in said


def test_export_refuses_names_of_a_unets_programs(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", f"--workdir={student_run('flux')}", f"--out={scratch() / 's'}"]
    said = refused(capsys, *line, "--lora=kohya")
    assert "--lora=kohya of a FluxPipeline, expected a pipeline with a U-Net" in said
    assert "use --lora, by peft's names" in said
    said = refused(capsys, *line, "--single_file")
    assert "--single_file of a FluxPipeline" in said and "leave it away: the folder has" in said


# --- bad input, before anything is compiled ---


def cached(pipeline: Path, *more: str) -> list[object]:
    images, out = f"--images={photos()}", f"--out={scratch() / 'cache'}"
    return ["cache", f"--pipeline={pipeline}", images, out, "--enlarge", *more]


def changed(kind: str, file: str, **settings: object) -> Path:
    """A copy of a pipeline with other settings in one of its files."""
    folder = Path(shutil.copytree(flow_pipeline(kind), scratch() / kind))
    text = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(text | settings))
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flux2_klein"])
def test_cache_refuses_a_size_that_no_patch_divides(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *cached(flow_pipeline(kind), "--resolution=14"))
    assert "resolution=14 pixels are latents of 7" in said and "expected a multiple of 2" in said


def test_cache_refuses_a_size_that_is_no_whole_number_of_normalised_patches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(capsys, *cached(flow_pipeline("flux2_klein"), "--resolution=13"))
    assert "resolution=13, expected a multiple of 2, by which this autoencoder divides it" in said


def test_cache_refuses_a_text_encoder_of_another_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline = changed("z_image", "transformer/config.json", cap_feat_dim=14)
    said = refused(capsys, *cached(pipeline))
    assert "prompt_embeds of width 12 for 14, expected what transformer/ reads" in said


@pytest.mark.parametrize(
    "kind, file, settings, message",
    [
        ("qwen_image", "transformer/config.json", {"zero_cond_t": True}, "zero_cond_t=True"),
        ("qwen_image", "vae/config.json", {"attn_scales": [1.0]}, "attn_scales=[1.0]"),
        ("qwen_image", "model_index.json", {"vae": ["x", "AutoencoderKL"]}, "AutoencoderKLQwen"),
        ("qwen_image", "model_index.json", {"_class_name": "QwenImageEditPipeline"}, "EditPipe"),
        ("z_image", "transformer/config.json", {"siglip_feat_dim": 8}, "siglip_feat_dim=8"),
        ("z_image", "model_index.json", {"text_encoder": ["x", "Qwen2Model"]}, "Qwen2Model"),
        ("sd3", "transformer/config.json", {"_class_name": "HunyuanDiT2DModel"}, "HunyuanDiT2"),
        ("sd3", "transformer/config.json", {"added_kv": 3}, "added_kv=3 is no setting"),
        ("flux", "scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sig"),
        ("flux2_klein", "model_index.json", {"vae": ["x", "AutoencoderKL"]}, "AutoencoderKLFlux2"),
        ("flux2_klein", "transformer/config.json", {"guidance_embeds": True}, "use klein"),
        ("flux", "model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "DDIMSched"),
        ("flux", "model_index.json", {"text_encoder_2": [None, None]}, "text_encoder_2 = [None"),
        ("sd3", "model_index.json", {"transformer": ["x", "SanaTransformer"]}, "SanaTransformer"),
        ("sd3", "model_index.json", {"text_encoder": [None, None]}, "only text_encoder_3 and toke"),
        ("sd3", "model_index.json", {"text_encoder_2": None}, "(only text_encoder_3 and tokenizer"),
        ("sd3", "model_index.json", {"tokenizer_3": None}, "no tokenizer_3, expected text_encoder"),
    ],
)
def test_sample_refuses_a_pipeline_by_what_is_wrong_with_it(
    kind: str,
    file: str,
    settings: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["sample", f"--pipeline={changed(kind, file, **settings)}", f"--prompt={PROMPTS[0]}"]
    assert message in refused(capsys, *line, f"--out={scratch() / 'x.png'}")


def test_cache_refuses_a_caption_that_no_encoder_reads_whole(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    words = cached(flow_pipeline("sd3"), "--dry_run")
    images = write_folder(scratch() / "long", {"0.png": (photos() / "0.png").read_bytes()})
    words.append(f"--images={images}")
    (images / "0.txt").write_text("seven " * 300)
    message = refused(capsys, *words)
    assert f"1 of 1 prompts lose their ends: {images}/0.png has " in message
    assert "expected at most 256" in message
    assert dmd2(*words, "--cut_prompts") == 0
    assert "1 of 1 prompts have more than 256 tokens and lose their ends" in caplog.text
    caplog.clear()
    (images / "0.txt").write_text("seven " * 40)  # more than CLIP's 77, which T5 reads
    assert dmd2(*words) == 0 and "tokens" not in caplog.text


def test_sample_refuses_a_prompt_beyond_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sample", f"--pipeline={flow_pipeline('sd3')}", f"--out={scratch() / 'x.png'}"]
    message = refused(capsys, *line, f"--prompt={'seven ' * 300}")
    assert "expected at most 256: 'seven seven" in message and "--cut_prompts" in message
