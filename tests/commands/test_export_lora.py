"""`dmd2 export --lora`: in diffusers the adapters make the images of the merged weights."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.families.published.lora import to_lora_tensors
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.networks.lora import LoraConfig, lora_init, merge
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.exports import PROMPTS, TIMES, ours
from tests.pipelines import diffusers_pipeline, lcm_images, tiny_pipeline
from tests.tiny import dmd2, refused, scratch

RANK = 3
TIMES_FLAG = f"--times={','.join(map(str, TIMES))}"


@functools.cache
def files() -> tuple[Path, Path]:
    """Adapters of the tiny SDXL, and the weights that they make of it."""
    family, base = stable_diffusion.read(tiny_pipeline("sdxl"))
    lora = LoraConfig(RANK, 4.0, family.lora_targets)
    own = lora_init(jax.random.key(0), base, lora, family.tensor_name)
    random = np.random.RandomState(0)
    own = jax.tree.map(
        lambda x: 0.5 * random.standard_normal(x.shape).astype(np.float32) / x.shape[-2] ** 0.5, own
    )
    folder = scratch()
    tensors = to_lora_tensors(own, lora, family.tensor_name)
    write_safetensors(tensors, folder / "student_lora.safetensors")
    family.save(merge(base, own, lora), folder / "student.safetensors")
    return folder / "student_lora.safetensors", folder / "student.safetensors"


def words(weights: Path, out: Path, *more: str, kind: str = "sdxl") -> list[object]:
    base = f"--pipeline={tiny_pipeline(kind)}"
    return ["export", f"--weights={weights}", base, TIMES_FLAG, f"--out={out}", *more]


def test_lora_in_diffusers_makes_the_images_of_the_merged_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers loads adapters by peft, which is not installed")
    import diffusers

    adapters, merged = files()
    assert dmd2(*words(adapters, tmp_path / "lora", "--lora")) == 0
    assert dmd2(*words(merged, tmp_path / "merged")) == 0
    images, noise = ours(tmp_path / "merged")
    pipe = diffusers_pipeline(tiny_pipeline("sdxl"))
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    without = lcm_images(pipe, PROMPTS, noise, timesteps=list(TIMES))
    pipe.load_lora_weights(tmp_path / "lora")
    expected = lcm_images(pipe, PROMPTS, noise, timesteps=list(TIMES))
    assert np.abs(images - expected).max() <= 2e-3
    assert np.abs(images - without).max() > 0.05


def test_lora_is_one_file_of_the_unets_names(tmp_path: Path) -> None:
    adapters, _ = files()
    assert dmd2(*words(adapters, tmp_path / "lora", "--lora")) == 0
    names = sorted(path.name for path in (tmp_path / "lora").iterdir())
    assert names == ["README.md", "pytorch_lora_weights.safetensors"]
    tensors = read_safetensors(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    expected = read_safetensors(adapters)
    assert tensors.keys() == {f"unet.{name}" for name in expected}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[f"unet.{name}"], tensor)
    # What was exported can be exported again.
    again = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert dmd2(*words(again, tmp_path / "again", "--lora")) == 0


def test_lora_by_kohyas_names_is_the_same_and_found_by_comfyui(tmp_path: Path) -> None:
    adapters, _ = files()
    assert dmd2(*words(adapters, tmp_path / "kohya", "--lora=kohya")) == 0
    file = tmp_path / "kohya" / "pytorch_lora_weights.safetensors"
    tensors, expected = read_safetensors(file), read_safetensors(adapters)
    layers = {name.rpartition(".lora_")[0] for name in expected}
    # The names by which ComfyUI and A1111 look for diffusers' layers.
    assert {name.split(".")[0] for name in tensors} == {
        "lora_unet_" + layer.replace(".", "_") for layer in layers
    }
    for layer in layers:
        flat = "lora_unet_" + layer.replace(".", "_")
        assert tensors[f"{flat}.alpha"] == RANK
        for end, kohya in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            np.testing.assert_array_equal(
                tensors[f"{flat}.{kohya}.weight"], expected[f"{layer}.{end}.weight"]
            )
    # and back
    assert dmd2(*words(file, tmp_path / "peft", "--lora")) == 0
    back = read_safetensors(tmp_path / "peft" / file.name)
    assert back.keys() == {f"unet.{name}" for name in expected}
    for name, tensor in expected.items():
        np.testing.assert_array_equal(back[f"unet.{name}"], tensor)


def test_lora_by_kohyas_names_is_in_diffusers_the_merged_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="diffusers loads adapters by peft, which is not installed")
    adapters, merged = files()
    assert dmd2(*words(adapters, tmp_path / "kohya", "--lora=kohya")) == 0
    pipe = diffusers_pipeline(tiny_pipeline("sdxl"))
    pipe.load_lora_weights(tmp_path / "kohya")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    got = pipe.unet.state_dict()
    for name, tensor in read_safetensors(merged).items():
        np.testing.assert_allclose(got[name].numpy(), tensor, atol=1e-6, err_msg=name)


def test_readme_of_adapters_says_which_program_takes_which(tmp_path: Path) -> None:
    adapters, _ = files()
    for names in ("peft", "kohya"):
        assert dmd2(*words(adapters, tmp_path / names, f"--lora={names}")) == 0
    card = (tmp_path / "kohya" / "README.md").read_text()
    assert "sampler lcm, scheduler simple, 4 steps, cfg 1.0" in card and "models/loras" in card
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "ComfyUI finds none of the attention layers by these names" in card
    assert "models/loras" not in card


def test_lora_of_another_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *words(files()[0], tmp_path / "lora", "--lora", kind="sd15"))
    assert "LoRA of another base" in said and "give that base" in said
    assert not (tmp_path / "lora").exists()


def test_lora_of_several_ranks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = dict(read_safetensors(files()[0]))
    layer = next(iter(tensors)).rsplit(".lora_", 1)[0]
    for end, axis in (("lora_A.weight", 0), ("lora_B.weight", 1)):
        tensors[f"{layer}.{end}"] = tensors[f"{layer}.{end}"].take([0, 1], axis=axis)
    write_safetensors(tensors, tmp_path / "odd.safetensors")
    said = refused(capsys, *words(tmp_path / "odd.safetensors", tmp_path / "lora", "--lora"))
    assert "LoRA of rank 2, 3, expected one rank" in said


def test_lora_with_half_of_a_pair_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = dict(read_safetensors(files()[0]))
    del tensors[next(iter(tensors))]
    write_safetensors(tensors, tmp_path / "odd.safetensors")
    said = refused(capsys, *words(tmp_path / "odd.safetensors", tmp_path / "lora", "--lora"))
    assert "without their pairs" in said


def test_weights_of_a_network_are_no_lora_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *words(files()[1], tmp_path / "lora", "--lora"))
    assert "no LoRA file" in said
