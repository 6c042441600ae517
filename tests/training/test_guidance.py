"""`dmd2 distill` with a range of guidance scales, and what its student is asked for afterwards."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from dmd2_jax.commands.serve.drawing import Drawer
from dmd2_jax.commands.serve.subjects import Request, open_run_folder
from dmd2_jax.config.load import apply_overrides
from dmd2_jax.config.refused import Refused
from dmd2_jax.distill import generate
from dmd2_jax.networks.guidance_embedding import GUIDANCE
from dmd2_jax.recipe.open import build_family
from dmd2_jax.recipe.weights import starting_weights
from dmd2_jax.sampling.runs import checkpoint_params, open_run
from dmd2_jax.sampling.samplers import sample_noise
from dmd2_jax.weights.state_dict import read_safetensors
from tests.tiny import RECIPE, contents, distill_words, dmd2, get_config, refused, results, scratch

RANGE = "--config.distill.guidance_range=1,4"
WORDS = (
    RANGE,
    "--config.optim.generator_lr=0.01",  # so that four cycles move the scale's weights
    "--config.optim.critic_lr=0.01",
    "--config.distill.guidance=None",
)


@pytest.fixture(scope="module")
def whole() -> Path:
    """A run that was never stopped."""
    workdir = scratch() / "whole"
    assert dmd2(*distill_words(workdir, *WORDS)) == 0
    return workdir


def images(*words: object) -> np.ndarray:
    out = scratch() / "x.npz"
    assert dmd2("sample", *words, "--num=10", f"--out={out}") == 0
    return np.load(out)["arr_0"].astype(int)


def test_a_stopped_run_goes_on_as_one_that_was_not(whole: Path) -> None:
    stopped = scratch() / "stopped"
    assert dmd2(*distill_words(stopped, *WORDS, "--config.distill.cycles=2")) == 0
    assert dmd2(*distill_words(stopped, *WORDS)) == 0
    assert results(stopped) == results(whole)


def test_student_and_critic_have_learned_of_the_scale(whole: Path) -> None:
    tensors = read_safetensors(whole / "student.safetensors")
    (kernel,) = (it for name, it in tensors.items() if name.endswith(".cond_proj.weight"))
    assert np.abs(kernel).max() > 0.01
    exported = open_run(whole).load()
    saved, _ = checkpoint_params(whole)
    jax.tree.map(np.testing.assert_array_equal, exported, saved)
    critic, _ = checkpoint_params(whole, part="critic.params")
    assert all(np.any(it != 0) for it in critic[GUIDANCE].values())


def test_sample_takes_a_scale_of_the_range(whole: Path) -> None:
    by_default, middle = (
        images(f"--workdir={whole}"),
        images(f"--workdir={whole}", "--guidance=2.5"),
    )
    np.testing.assert_array_equal(by_default, middle)
    assert np.any(images(f"--workdir={whole}", "--guidance=4") != middle)
    teacher = (f"--workdir={whole}", "--which=teacher")
    assert np.any(images(*teacher, "--guidance=4") != images(*teacher, "--guidance=1"))


def test_evaluate_measures_teacher_and_student_at_the_scale(whole: Path) -> None:
    out = scratch() / "metrics.json"
    words = ("evaluate", f"--workdir={whole}", "--guidance=3", "--num=30", f"--out={out}")
    assert dmd2(*words) == 0
    figures = json.loads(out.read_text())
    assert figures["student_guidance"] == 3.0 and figures["student_nfe"] == 1
    assert figures["teacher_nfe"] == 2 * 3  # two passes each of Heun's calls

    weights = (f"--config={RECIPE}", f"--weights={whole / 'student.safetensors'}", RANGE)
    assert dmd2("evaluate", *weights, "--guidance=3", "--num=30", f"--out={out}") == 0
    assert json.loads(out.read_text())["student_guidance"] == 3.0


def test_export_folds_the_scale_into_a_plain_network(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = scratch() / "student"
    words = ["export", f"--workdir={whole}", f"--out={out}"]
    assert "give --guidance=2.5" in refused(capsys, *words)
    assert dmd2(*words, "--guidance=3") == 0
    assert "| written at | guidance 3 |" in (out / "README.md").read_text()
    family = build_family(open_run(whole).config)
    params = family.load(out / "student.safetensors")
    noise = sample_noise(0, np.arange(10), 1, family.image_shape)
    x_0 = generate(family.denoiser, params, noise, family.cond(np.arange(10)), times=(1.0,))
    expected = images(f"--workdir={whole}", "--guidance=3")
    np.testing.assert_allclose(np.clip(x_0 * 127.5 + 128, 0, 255).astype(int), expected, atol=1)


def test_a_run_begins_with_the_weights_of_such_a_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply_overrides(config := get_config(), {"distill.guidance_range": "1,3"})
    generator, critic = starting_weights(str(whole), build_family(config), config)
    saved, _ = checkpoint_params(whole)
    jax.tree.map(np.testing.assert_array_equal, generator, saved)
    assert GUIDANCE in critic
    words = distill_words(tmp_path / "on", f"--config.distill.start_from={whole}", "--dry_run")
    assert "set config.distill.guidance_range=1,4" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config.distill.guidance_range=4,1",), "guidance_range=(4, 1), expected (low, high)"),
        ((RANGE, "--config.distill.guidance=2"), "expected one of the two: a scale for all"),
        ((RANGE, "--config.distill.regression_weight=0.25"), "pairs that the teacher made"),
        ((RANGE, "--config.model.num_classes=0"), "with an unconditional model"),
        (("--config.distill.guidance_range=0,4",), "expected (low, high) with 0 < low < high"),
        (
            (RANGE, "--config.distill.objectives=guidance_augmentation:guidance=4"),
            "'guidance_augmentation' with guidance=4",
        ),
    ],
)
def test_what_a_range_excludes_is_refused_before_anything_is_written(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *distill_words(tmp_path / "run", "--dry_run", *words))
    assert message in said
    assert contents(tmp_path) == {}


def test_pairs_are_made_at_one_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("make-pairs", f"--config={RECIPE}", f"--out={tmp_path / 'pairs'}", RANGE)
    assert "which the teacher makes at one scale" in refused(capsys, *words)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("command", "words"),
    [("sample", ("--out=x.png",)), ("evaluate", ("--num=10",)), ("export", ("--out=x",))],
)
def test_a_scale_out_of_the_range_is_refused(
    command: str,
    words: tuple[str, ...],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, command, f"--workdir={whole}", "--guidance=5", *words)
    assert "guidance=5, expected a scale in 1..4" in said
    assert contents(tmp_path) == {}


def test_the_page_draws_any_scale_by_one_program(whole: Path) -> None:
    drawer = Drawer(open_run_folder(str(whole)))
    assert drawer.subject.offer.scales == (1.0, 4.0) and drawer.subject.offer.guidance == 2.5
    request = Request("", num=10, guidance=4.0)
    drawn = drawer.draw("student", request)
    np.testing.assert_array_equal(drawn.images, images(f"--workdir={whole}", "--guidance=4"))
    assert not drawer.must_compile("student", request._replace(guidance=1.0))
    with pytest.raises(Refused, match="guidance=5, expected a scale in"):
        drawer.draw("student", request._replace(guidance=5.0))


def test_adapters_of_a_range_are_exported_merged_alone() -> None:
    workdir = scratch() / "adapters"
    lora = ("--config.distill.lora_rank=2", "--config.distill.lora_critic=True")
    assert dmd2(*distill_words(workdir, *WORDS, *lora)) == 0
    assert not list(workdir.glob("*_lora.safetensors"))  # they would be another network
    tensors = read_safetensors(workdir / "student.safetensors")
    assert any(name.endswith(".cond_proj.weight") for name in tensors)
    assert np.any(images(f"--workdir={workdir}", "--guidance=4") != images(f"--workdir={workdir}"))
