"""Runs of text-to-image models: `dmd2 sample --workdir --prompt` and `dmd2 export --workdir`."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tests.pipelines  # noqa: F401  first: it skips this file where torch is missing
from dmd2_jax.config.load import apply_overrides, plain
from dmd2_jax.evaluate.measured import open_measured
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.families.published.lora import to_lora_tensors
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.networks.lora import LoraConfig, lora_init
from dmd2_jax.run.folder import open_run
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.sampling import runs
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.exports import TIMES, student_file
from tests.pipelines import CAPTIONS, diffusers_pipeline, tiny_pipeline
from tests.tiny import dmd2, refused, scratch
from tests.tiny_unet import get_config

PROMPTS = [f"--prompt={text}" for text in (CAPTIONS[7], CAPTIONS[12])]


@functools.cache
def run_folder(kind: str = "sd15", command: str = "distill", **overrides: str) -> Path:
    """What training leaves: the config and, where a student was, weights made up; do not change."""
    config = get_config()
    settings = {
        "model.family": "stable_diffusion",
        "model.pipeline": str(tiny_pipeline(kind)),
        "distill.student_times": ",".join(map(str, TIMES)),
        "distill.guidance": "3.0",
        "teacher.sampler_steps": "4",
    }
    apply_overrides(config, settings | overrides)
    folder = scratch() / "run"
    open_run(folder, command, plain(config))
    which = "student" if command == "distill" else "teacher"
    tensors = read_safetensors(student_file(kind))
    write_safetensors(tensors, folder / f"{which}.safetensors")
    average = {name: np.float32(0.9) * tensor for name, tensor in tensors.items()}
    write_safetensors(average, folder / f"{which}_ema_0.9.safetensors")
    return folder


def pixels(*words: object) -> np.ndarray:
    """Sample by the command and read the picture."""
    out = scratch() / "x.png"
    assert dmd2("sample", *words, *PROMPTS, f"--out={out}") == 0
    return np.asarray(Image.open(out))


@functools.cache
def exported(*more: str) -> Path:
    out = scratch() / "student"
    assert dmd2("export", f"--workdir={run_folder()}", f"--out={out}", *more) == 0
    return out


def unet(folder: Path) -> dict[str, np.ndarray]:
    return read_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_student_of_a_run_makes_the_images_of_its_export() -> None:
    ours = pixels(f"--workdir={run_folder()}")
    np.testing.assert_array_equal(ours, pixels(f"--pipeline={exported()}"))
    assert ours.std() > 10


def test_teacher_of_a_run_makes_the_images_of_its_pipeline() -> None:
    ours = pixels(f"--workdir={run_folder()}", "--which=teacher")
    flags = ("--steps=4", "--guidance=3")
    np.testing.assert_array_equal(ours, pixels(f"--pipeline={tiny_pipeline('sd15')}", *flags))


def test_export_of_a_run_has_its_weights_and_times() -> None:
    expected = read_safetensors(student_file("sd15"))
    for name, tensor in unet(exported()).items():
        np.testing.assert_array_equal(tensor, expected[name])
    scheduler = json.loads((exported() / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_student_timesteps"] == list(TIMES)


def test_export_of_an_average_has_its_weights() -> None:
    expected = read_safetensors(run_folder() / "student_ema_0.9.safetensors")
    for name, tensor in unet(exported("--ema=0.9")).items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_export_of_a_teachers_run_keeps_its_pipelines_scheduler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", f"--workdir={run_folder(command='train-teacher')}"]
    line += [f"--out={tmp_path / 'teacher'}"]
    assert "expected none: it keeps its pipeline's" in refused(capsys, *line, "--scheduler=lcm")
    assert dmd2(*line) == 0
    ours, base = diffusers_pipeline(tmp_path / "teacher"), diffusers_pipeline(tiny_pipeline("sd15"))
    assert type(ours.scheduler) is type(base.scheduler)
    assert dict(ours.scheduler.config) == dict(base.scheduler.config)
    assert 'image = pipe("a red fox").images[0]' in (tmp_path / "teacher" / "README.md").read_text()


@functools.cache
def lora_run() -> Path:
    """A run of adapters of rank 2."""
    folder = run_folder(**{"distill.lora_rank": "2", "distill.lora_targets": "to_q,to_v"})
    family, base = stable_diffusion.read(tiny_pipeline("sd15"))
    lora = LoraConfig(2, 8.0, ("to_q", "to_v"))
    own = lora_init(jax.random.key(0), base, lora, family.tensor_name)
    tensors = to_lora_tensors(own, lora, family.tensor_name)
    write_safetensors(tensors, folder / "student_lora.safetensors")
    three = LoraConfig(3, 8.0, ("to_q", "to_v"))
    other = lora_init(jax.random.key(0), base, three, family.tensor_name)
    tensors = to_lora_tensors(other, three, family.tensor_name)
    write_safetensors(tensors, folder / "student_ema_0.9_lora.safetensors")
    return folder


def test_export_of_a_run_of_adapters_writes_them_alone(tmp_path: Path) -> None:
    assert dmd2("export", f"--workdir={lora_run()}", f"--out={tmp_path / 'l'}", "--lora") == 0
    got = read_safetensors(tmp_path / "l" / "pytorch_lora_weights.safetensors")
    expected = read_safetensors(lora_run() / "student_lora.safetensors")
    assert {name.removeprefix("unet.") for name in got} == expected.keys()


@pytest.mark.parametrize(
    "words, message",
    [
        (("--lora",), "trained a whole network, expected a distillation with distill.lora_rank"),
        (("--times=999",), "--times with --workdir, whose config says them"),
        (("--ema=0.5",), "ema=0.5, expected one of optim.ema_decays=(0.9,)"),
        (("--pipeline=absent",), "the run's pipeline 'absent' is no folder"),
        (("--lora", "--checkpoint=1"), "--lora with --checkpoint=1, expected one"),
    ],
)
def test_export_of_a_run_refuses(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", f"--workdir={run_folder()}", f"--out={tmp_path / 's'}"]
    assert message in refused(capsys, *line, *words)
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_adapters_of_another_rank_than_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", f"--workdir={lora_run()}", f"--out={tmp_path / 'l'}", "--lora", "--ema=0.9"]
    assert "LoRA of rank 3, expected 2; give the file that the run wrote" in refused(capsys, *line)


def test_export_refuses_a_pipeline_of_another_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", f"--workdir={run_folder()}", f"--out={tmp_path / 's'}"]
    said = refused(capsys, *line, f"--pipeline={tiny_pipeline('sdxl')}")
    assert "is another network than the run's" in said


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "expected one of them; give --prompt="),
        (("--prompt=a", "--classes=1"), "--classes given with the run in"),
        (("--prompt=a", "--steps=2"), "steps=2, expected 4: this student's times"),
        (("--prompt=a", "--guidance=2"), "its teacher's guidance is in its weights"),
        (("--prompt=a", "--weights=absent"), "no weights at absent"),
        (("--prompt=a", "--checkpoint=2", "--which=teacher"), "leave the others away"),
    ],
)
def test_sample_of_a_run_refuses(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "sample", f"--workdir={run_folder()}", *words)


@pytest.mark.parametrize("flag", ["--prompt=a", "--steps=4", "--pipeline=x"])
def test_sample_of_a_run_of_classes_refuses_what_is_of_prompts(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_run(tmp_path / "run", "distill", plain(get_config()))
    said = refused(capsys, "sample", f"--workdir={tmp_path / 'run'}", flag)
    assert f"{flag.partition('=')[0]} given with the run in" in said
    assert "which draws classes, expected a text-to-image model" in said


def test_a_text_run_is_read_once_and_its_network_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, built = [], []
    for name, calls in (("read_run", read), ("build_family", built)):
        honest = getattr(runs, name)
        monkeypatch.setattr(runs, name, lambda *a, f=honest, c=calls: c.append(a) or f(*a))
    pixels(f"--workdir={run_folder()}")
    assert (len(read), len(built)) == (1, 1)


@pytest.mark.parametrize("of", ["pipeline", "workdir"])
def test_opening_what_is_measured_loads_no_weights(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text(CAPTIONS[0])
    folder = {"pipeline": tiny_pipeline("sd15"), "workdir": run_folder()}[of]
    options = EvaluateOptions(**{of: str(folder)}, prompts=str(tmp_path / "p.txt"))
    run = None if of == "pipeline" else runs.read_run_folder(folder)
    config, mesh = None if run is None else run.config, make_mesh({}, jax.devices()[:1])

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError(f"weights are read: {arguments}")

    monkeypatch.setattr("dmd2_jax.families.published.folder.read_component_tensors", load)
    monkeypatch.setattr(stable_diffusion, "read_component_tensors", load)
    monkeypatch.setattr(stable_diffusion, "read_weights", load)
    measured = open_measured(options, config, run, mesh)
    assert [images.resolution for images in measured] == [16] * (1 if of == "pipeline" else 3)
    with pytest.raises(AssertionError, match="weights are read"):
        next(measured[0].batches())
