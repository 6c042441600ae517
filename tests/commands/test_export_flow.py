"""`dmd2 export` of flow students: in diffusers' pipelines of flows the images are ours."""

import ast
import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from dmd2_jax import families
from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.families.published.lora import to_lora_tensors
from dmd2_jax.families.published.scheduler import recorded_times
from dmd2_jax.networks.lora import LoraConfig, lora_init, matching_targets, merge
from dmd2_jax.networks.packing import pack
from dmd2_jax.run.folder import open_run
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.commands.test_flow_client import NO_GAN, distilled
from tests.exports import FLOW_TIMES, PROMPTS, ours, student_file, words
from tests.pipelines import RESOLUTION, diffusers_pipeline, photos, tiny_pipeline
from tests.tiny import contents, dmd2, refused, scratch
from tests.tiny_unet import get_config

KINDS = ("sd3", "flux", "flux2_klein", "z_image", "qwen_image")
FOUR_STEPS = ("--config.distill.student_steps=4",)
ADAPTED = (*FOUR_STEPS, "--config.distill.lora_rank=2", "--config.distill.lora_critic=True")
SCHEDULERS = ("flow_match_euler_discrete", "flow_match_lcm")


@functools.cache
def lora(kind: str) -> tuple[dict[str, np.ndarray], Any, Any]:
    """Adapters made up of a tiny pipeline: their tensors, the family, what they make of it."""
    family, base = families.read(tiny_pipeline(kind))
    targets = matching_targets(base, family.lora_targets, family.tensor_name)
    settings = LoraConfig(3, 4.0, targets)
    own = lora_init(jax.random.key(0), base, settings, family.tensor_name)
    random = np.random.RandomState(0)
    own = jax.tree.map(
        lambda x: 0.5 * random.standard_normal(x.shape).astype(np.float32) / x.shape[-2] ** 0.5, own
    )
    tensors = to_lora_tensors(own, settings, family.tensor_name)
    return tensors, family, merge(base, own, settings)


@functools.cache
def base(kind: str) -> Path:
    """The folder of a teacher's pipeline; that of "schnell" takes no guidance."""
    if kind != "schnell":
        return tiny_pipeline(kind)
    folder = Path(shutil.copytree(tiny_pipeline("flux"), scratch() / kind))
    own = folder / "transformer"
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"guidance_embeds": False}))
    write_safetensors(weights(kind), own / "diffusion_pytorch_model.safetensors")
    return folder


def weights(kind: str) -> dict[str, np.ndarray]:
    """The tensors of a student."""
    if kind != "schnell":
        return read_safetensors(student_file(kind))
    tensors = read_safetensors(student_file("flux"))
    return {name: tensor for name, tensor in tensors.items() if "guidance" not in name}


@functools.cache
def run_folder(
    kind: str, steps: int = 4, adapters: bool = False, size: str = str(RESOLUTION // 2)
) -> Path:
    """What distilling leaves: the config, and weights made up; do not change it."""
    config = get_config()
    settings = {
        "model.family": "flux" if kind == "schnell" else kind,
        "model.pipeline": str(base(kind)),
        "model.resolution": size,
        "distill.student_times": ",".join(map(str, FLOW_TIMES[:steps])),
    }
    if kind == "flux":
        settings["model.guidance"] = "2.25"
    if adapters:
        settings |= {"distill.lora_rank": "3", "distill.lora_alpha": "4.0"}
    apply_overrides(config, settings)
    folder = scratch() / "run"
    open_run(folder, "distill", plain(config))
    if adapters:
        tensors, family, merged = lora(kind)
        write_safetensors(tensors, folder / "student_lora.safetensors")
        family.save(merged, folder / "student.safetensors")
    else:
        write_safetensors(weights(kind), folder / "student.safetensors")
    return folder


@functools.cache
def exported(kind: str, steps: int, *more: str, adapters: bool = False, **size: str) -> Path:
    """A student's pipeline; do not change it."""
    run, out = run_folder(kind, steps, adapters, **size), scratch() / "student"
    assert dmd2("export", f"--workdir={run}", f"--out={out}", *more) == 0
    return out


@contextmanager
def drawing(noises: list[Any]) -> Iterator[None]:
    """Let diffusers' schedulers of flows draw these, one a step and one more at the end."""
    left = iter(noises)
    with ExitStack() as stack:
        for name in SCHEDULERS:
            where = f"diffusers.schedulers.scheduling_{name}.randn_tensor"
            draw = mock.Mock(side_effect=lambda shape, **_: next(left, 0.0))
            stack.enter_context(mock.patch(where, draw))
        yield


def theirs(pipeline: Any, noise: np.ndarray, **call: Any) -> np.ndarray:
    """Images of diffusers' pipeline from the same noises, in [0, 1]."""
    import torch

    klein, name = "Flux2" in type(pipeline).__name__, type(pipeline).__name__
    if "Flux" in name or name == "QwenImagePipeline":
        packed = [x if klein else np.asarray(pack(x)) for x in noise]
        drawn_ = [torch.from_numpy(x.reshape(len(x), -1, x.shape[-1]).copy()) for x in packed]
    else:
        drawn_ = [torch.from_numpy(x.copy()) for x in noise.transpose(0, 1, 4, 2, 3)]
    if klein:  # which packs the first of them itself
        drawn_[0] = torch.from_numpy(noise[0].transpose(0, 3, 1, 2).copy())
    with drawing(drawn_[1:]):
        words = call | {"prompt": list(PROMPTS), "latents": drawn_[0], "output_type": "np"}
        return pipeline(**words).images


def call_of(card: str) -> dict[str, Any]:
    """The arguments of the call that a README.md has, but a prompt without a name."""
    line = next(line for line in card.splitlines() if line.startswith("image = pipe("))
    call = ast.parse(line.removeprefix("image = ").removesuffix(".images[0]"), mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}


@pytest.mark.parametrize(
    "kind, steps", [(kind, steps) for kind in KINDS for steps in (1, 4)] + [("schnell", 4)]
)
def test_call_of_the_readme_makes_our_images_in_diffusers(kind: str, steps: int) -> None:
    folder = exported(kind, steps)
    images, noise = ours(folder)
    assert len(noise) == steps
    call = call_of((folder / "README.md").read_text())
    assert call["sigmas"] == list(FLOW_TIMES[:steps])
    assert call["height"] == call["width"] == RESOLUTION
    scale = {"flux": 2.25, "qwen_image": 1.0}.get(kind, 0)
    assert call["true_cfg_scale" if kind == "qwen_image" else "guidance_scale"] == scale
    card = (folder / "README.md").read_text()
    assert ("it takes none when it samples" in card) == (kind != "flux")
    expected = theirs(diffusers_pipeline(folder), noise, **call)
    assert np.abs(images - expected).max() <= 1e-5
    assert expected.std() > 0.05 and np.abs(expected[0] - expected[1]).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_not_square_are_ours_in_diffusers(kind: str) -> None:
    folder = exported(kind, 1, size="4x8")
    images, noise = ours(folder)
    call = call_of((folder / "README.md").read_text())
    assert (call["height"], call["width"]) == images.shape[1:3] == (8, 16)
    expected = theirs(diffusers_pipeline(folder), noise, **call)
    assert np.abs(images - expected).max() <= 1e-5 and expected.std() > 0.05


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_images_of_a_tiny_autoencoder_are_ours_in_diffusers(kind: str, tmp_path: Path) -> None:
    """As of taesd3 and taef1, put into their folders; those have factor 1 and shift 0."""
    import diffusers
    import torch

    torch.manual_seed(0)
    folder = Path(shutil.copytree(exported(kind, 4), tmp_path / kind))
    (folder / "digests.json").unlink()  # it is another pipeline
    shutil.rmtree(folder / "vae")
    sizes = {"encoder_block_out_channels": (4, 4), "num_encoder_blocks": (1, 1)}
    sizes |= {"decoder_block_out_channels": (4, 4), "num_decoder_blocks": (1, 1)}
    vae = diffusers.AutoencoderTiny(
        latent_channels=6, **sizes, scaling_factor=1.3, shift_factor=0.2
    )
    for parameter in vae.decoder.parameters():  # fresh ones draw black
        parameter.data += 0.2 * torch.randn_like(parameter)
    vae.decoder.layers[-1].bias.data += 0.5
    vae.save_pretrained(folder / "vae")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderKL", "AutoencoderTiny"))
    images, noise = ours(folder)
    call = call_of((folder / "README.md").read_text())
    expected = theirs(diffusers_pipeline(folder), noise, **call)
    assert np.abs(images - expected).max() <= 1e-5 and expected.std() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_lora_makes_our_images_in_diffusers(kind: str) -> None:
    pytest.importorskip("peft", reason="diffusers loads adapters by peft, which is not installed")
    import diffusers

    images, noise = ours(exported(kind, 4, adapters=True))
    folder = exported(kind, 4, "--lora", adapters=True)
    card = (folder / "README.md").read_text()
    pipe = diffusers_pipeline(tiny_pipeline(kind))
    line = next(line for line in card.splitlines() if line.startswith("pipe.scheduler = "))
    name, _, settings = line.removeprefix("pipe.scheduler = diffusers.").partition("(**")
    pipe.scheduler = getattr(diffusers, name)(**ast.literal_eval(settings.removesuffix(")")))
    without = theirs(pipe, noise, **call_of(card))
    pipe.load_lora_weights(folder)
    expected = theirs(pipe, noise, **call_of(card))
    assert np.abs(images - expected).max() <= 1e-5
    assert np.abs(without - expected).max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_lora_is_one_file_of_the_transformers_names(kind: str) -> None:
    folder = exported(kind, 4, "--lora", adapters=True)
    assert set(contents(folder)) == {"README.md", "pytorch_lora_weights.safetensors"}
    got = read_safetensors(folder / "pytorch_lora_weights.safetensors")
    assert got.keys() == {f"transformer.{name}" for name in lora(kind)[0]}
    layers = {name.rpartition(".lora_")[0] for name in got}
    known = {f"transformer.{name}".removesuffix(".weight") for name in student_names(kind)}
    among = {"flux2_klein": "to_qkv_mlp_proj", "z_image": "feed_forward.w2"}
    among |= {"qwen_image": "txt_mlp.net.0.proj"}
    among = among.get(kind, "add_q_proj")
    assert layers <= known and any(among in name for name in layers)
    # What was exported can be exported again.
    out, file = scratch() / "again", folder / "pytorch_lora_weights.safetensors"
    assert dmd2(*words(kind, out, "--lora", f"--weights={file}")) == 0
    assert read_safetensors(out / file.name).keys() == got.keys()


def student_names(kind: str) -> set[str]:
    return set(read_safetensors(student_file(kind)))


def test_lcm_scheduler_makes_the_images_of_eulers() -> None:
    _, noise = ours(exported("sd3", 4))
    made = []
    for folder in (exported("sd3", 4), exported("sd3", 4, "--scheduler=lcm")):
        call = call_of((folder / "README.md").read_text())
        made.append(theirs(diffusers_pipeline(folder), noise, **call))
    name = type(diffusers_pipeline(exported("sd3", 4, "--scheduler=lcm")).scheduler).__name__
    assert name == "FlowMatchLCMScheduler"
    np.testing.assert_allclose(made[1], made[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_between_steps_is_of_manual_seed_and_not_of_the_generator(kind: str) -> None:
    import torch

    folder = exported(kind, 4)
    pipe, call = diffusers_pipeline(folder), call_of((folder / "README.md").read_text())

    def image(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(0)
        words = call | {"prompt": PROMPTS[0], "generator": generator, "output_type": "np"}
        return pipe(**words).images

    first = image(1)
    np.testing.assert_array_equal(image(1), first)
    assert np.abs(image(2) - first).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_export_is_a_complete_pipeline_of_plain_files(kind: str) -> None:
    files, base = contents(exported(kind, 4)), contents(tiny_pipeline(kind))
    same = {path for path in base if path.split("/")[0] not in ("transformer", "scheduler")}
    for path in same - {"model_index.json"}:
        assert files[path] == base[path]
    plain = {".jinja", ".json", ".txt", ".safetensors", ".md"}
    assert {Path(path).suffix for path in files} <= plain
    written = json.loads(files["scheduler/scheduler_config.json"])
    assert recorded_times(written) == FLOW_TIMES
    assert written["shift"] == 1.0 and not written["use_dynamic_shifting"]
    assert written["shift_terminal"] is None  # which moves the last sigma, and of one makes NaN
    got = read_safetensors(
        exported(kind, 4) / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    for name, tensor in read_safetensors(student_file(kind)).items():
        np.testing.assert_array_equal(got[name], tensor)


def test_export_without_t5_opens_without_t5(tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_pipeline("sd3"), tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(base / part)
        index[part] = [None, None]
    (base / "model_index.json").write_text(json.dumps(index))
    out = tmp_path / "student"
    assert dmd2(*words("sd3", out, f"--pipeline={base}")) == 0
    assert not (out / "text_encoder_3").exists()
    images, noise = ours(out)
    card = (out / "README.md").read_text()
    assert 'from_pretrained("this folder", text_encoder_3=None, tokenizer_3=None)' in card
    pipe = diffusers_pipeline(out, text_encoder_3=None, tokenizer_3=None)
    assert np.abs(images - theirs(pipe, noise, **call_of(card))).max() <= 1e-5


def test_sample_takes_an_export_at_the_size_and_guidance_of_its_run(tmp_path: Path) -> None:
    made = []
    for source in (f"--workdir={run_folder('flux')}", f"--pipeline={exported('flux', 4)}"):
        file = tmp_path / f"{len(made)}.png"
        assert dmd2("sample", source, f"--prompt={PROMPTS[0]}", f"--out={file}") == 0
        made.append(file.read_bytes())
    assert made[0] == made[1]


# --- the whole way, from a pipeline that diffusers made to one that it opens ---


@pytest.mark.parametrize("kind", ["sd3", "flux", "z_image", "qwen_image"])
def test_distilled_adapters_make_our_images_in_diffusers(kind: str) -> None:
    pytest.importorskip("peft", reason="diffusers loads adapters by peft, which is not installed")
    more = ADAPTED if kind == "sd3" else (*ADAPTED, *NO_GAN)
    run = distilled(kind, tiny_pipeline(kind), photos(), RESOLUTION // 2, *more)
    merged, own = scratch() / "merged", scratch() / "lora"
    assert dmd2("export", f"--workdir={run}", f"--out={merged}") == 0
    assert dmd2("export", f"--workdir={run}", f"--out={own}", "--lora") == 0
    images, noise = ours(merged)
    pipe, call = diffusers_pipeline(merged), call_of((own / "README.md").read_text())
    np.testing.assert_allclose(theirs(pipe, noise, **call), images, atol=1e-5)
    adapted = diffusers_pipeline(tiny_pipeline(kind))
    adapted.scheduler = pipe.scheduler
    before = theirs(adapted, noise, **call)
    adapted.load_lora_weights(own)
    np.testing.assert_allclose(theirs(adapted, noise, **call), images, atol=1e-5)
    assert np.abs(before - images).max() > 1e-3  # it has learned something


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_distilled_student_makes_our_images_in_diffusers(kind: str) -> None:
    more = (*FOUR_STEPS, *NO_GAN) if kind == "sd3" else FOUR_STEPS
    run = distilled(kind, tiny_pipeline(kind), photos(), RESOLUTION // 2, *more)
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={run}", f"--out={out}") == 0
    images, noise = ours(out)
    call = call_of((out / "README.md").read_text())
    expected = theirs(diffusers_pipeline(out), noise, **call)
    assert len(noise) == 4 and call["sigmas"][0] == 1.0 and call["sigmas"][1] > 0.75
    np.testing.assert_allclose(images, expected, atol=1e-5)
    rows = read_metrics(run / "metrics.jsonl")
    assert ("gan_generator_loss" in rows[-1]) == (kind == "flux")


# --- what is refused ---


@pytest.mark.parametrize(
    "more, message",
    [
        (("--times=0.5,1",), "student times [0.5, 1.0], expected decreasing numbers in (0, 1]"),
        (("--times=999,749",), "expected decreasing numbers in (0, 1], 1 is noise"),
        (("--times=1,0",), "expected decreasing numbers in (0, 1]"),
        (("--times=nan",), "expected decreasing numbers in (0, 1]"),
        (("--scheduler=ddim",), "expected one of ('euler', 'lcm')"),
        (("--single_file",), "--single_file of a StableDiffusion3Pipeline, expected a pipeline"),
        (("--lora=kohya",), "use --lora, by peft's names, which diffusers opens"),
        (("--lora",), "no LoRA file"),
    ],
)
def test_export_refuses(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words("sd3", tmp_path / "s", *more))
    assert list(tmp_path.iterdir()) == []
