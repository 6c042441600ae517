"""`dmd2 verify`: what is compared, what is said of the rest, and the exit code."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax.commands.verify import check, ours
from dmd2_jax.commands.verify import subject as subject_module
from dmd2_jax.commands.verify.ignored import ignored_files, ignored_keys
from dmd2_jax.commands.verify.rows import Report, Row, compare, only_ours
from dmd2_jax.commands.verify.subject import Subject, open_subject
from dmd2_jax.config.refused import Refused
from dmd2_jax.families import sit
from dmd2_jax.families.published.configs import SCHEDULER
from dmd2_jax.sampling.samplers import few_step_sampler
from tests.tiny import dmd2, refused, teacher_run

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusers_models"
PARTS = {"unet": "unet_sd15", "vae": "vae_kl", "text_encoder": "text_encoder"}
KINDS = ("sd15", "sdxl", "sd3", "flux", "flux2_klein", "z_image", "qwen_image")
WITHOUT = ["torch", "diffusers"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of the recorded networks, with a file and a folder that nothing reads."""
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    for part, name in PARTS.items():
        shutil.copytree(GOLDEN / name, folder / part)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write(folder / "model_index.json", index)
    write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    letters = [chr(ord("a") + n) for n in range(26)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<start>", "<end>"]
    write(folder / "tokenizer" / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {f"{name}_token": "<end>" for name in ("eos", "unk", "pad")}
    special |= {"bos_token": "<start>", "model_max_length": 12}
    write(folder / "tokenizer" / "tokenizer_config.json", special)
    write(folder / "safety_checker" / "config.json", {})
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"?")
    return folder


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def without_torch(*words: object) -> int:
    with mock.patch.object(check, "missing_packages", return_value=WITHOUT):
        return dmd2("verify", *(str(word) for word in words))


def rows_of(told: str) -> dict[str, str]:
    """Return the line of each part."""
    lines = told.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("part "))
    return {line.split("  ")[0]: line for line in lines[start + 1 :]}


def test_without_diffusers_nothing_is_claimed(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="prompts are tokenized by it")
    out = tmp_path / "x.png"
    assert without_torch(f"--pipeline={pipeline}", f"--out={out}") == 1
    told = capsys.readouterr().out
    rows = rows_of(told)
    for part in ("tokenizer", "text_encoder", "prompts joined", "unet", "vae", "images"):
        assert "not compared" in rows[part], told
        assert "read, finite numbers; no torch, diffusers" in rows[part]
    assert "verdict: not compared" in told and out.is_file()
    assert "not read: safety_checker/ (1 files)" in told
    assert "not read: unet/diffusion_pytorch_model.fp16.safetensors" in told


def test_damaged_parts_are_named_and_the_others_looked_at(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert without_torch(f"--pipeline={folder}", f"--out={tmp_path / 'x.png'}") == 1
    told = capsys.readouterr().out
    rows = rows_of(told)
    assert "damaged" in rows["unet"] and str(folder) in rows["unet"]
    assert "finite numbers" in rows["vae"] and "nothing to sample with" in rows["images"]
    assert "verdict: differs" in told


def test_numbers_that_are_not_finite_are_damage() -> None:
    assert only_ours("unet", {"x_0": np.array([np.nan])}, "").verdict == "damaged"


def test_network_alone_is_verified_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert without_torch(f"--pipeline={GOLDEN / 'dit'}", f"--out={tmp_path / 'x.png'}") == 1
    told, progress = capsys.readouterr()
    assert next(iter(rows_of(told))) == "network" and "finite numbers" in told
    assert "verifying 10/10" in progress and "images/s" not in progress
    assert not (tmp_path / "x.png").exists()


def test_keys_of_no_effect_are_those_that_change_no_network(pipeline: Path) -> None:
    found = ignored_keys(open_subject(str(pipeline)))
    assert "addition_time_embed_dim" in found["unet"] and "pad_token_id" in found["text_encoder"]
    assert not {"norm_eps", "cross_attention_dim", "act_fn"} & set(found["unet"])


def test_drawn_condition_of_prompts_of_lengths_has_whole_ones() -> None:
    pytest.importorskip("transformers", reason="the pipeline's tokenizer is written by it")
    from tests.flow_pipelines import flow_pipeline

    subject = open_subject(str(flow_pipeline("z_image") / "transformer"))
    cond = ours.drawn_condition(subject)
    assert cond["prompt_embeds"].std() > 0.9 and (cond["prompt_mask"] == 1).all()


def test_files_of_replaced_weights_are_not_read(pipeline: Path) -> None:
    weights = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    plain = ignored_files(open_subject(str(pipeline)))
    replaced = ignored_files(open_subject(str(pipeline), str(weights)))
    assert set(replaced) - set(plain) == {"unet/diffusion_pytorch_model.safetensors"}


def run_of(family: object) -> SimpleNamespace:
    """Return what `open_run` does, of a student with two steps."""
    config = ConfigDict({"distill": {"student_times": (999, 499)}})
    return SimpleNamespace(
        family=family, which="student", config=config, load=lambda: "its", scale=lambda: None
    )


def test_run_of_a_student_brings_its_weights_and_its_steps(pipeline: Path, tmp_path: Path) -> None:
    plain = open_subject(str(pipeline))
    with mock.patch.object(subject_module, "open_run", return_value=run_of(plain.family)):
        student = open_subject(str(pipeline), str(tmp_path))
    assert (student.times, student.guidance, student.load()) == ((999, 499), None, "its")
    assert student.replaced and student.sampler.num_noises == 2 and plain.sampler.num_noises == 1


def test_run_of_another_network_is_refused(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = open_subject(str(GOLDEN / "dit")).family
    with mock.patch.object(subject_module, "open_run", return_value=run_of(other)):
        message = refused(capsys, "verify", f"--pipeline={pipeline}", f"--weights={tmp_path}")
    assert "is of another network" in message


def test_folder_of_no_known_class_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "model_index.json", {"_class_name": "PixArtAlphaPipeline"})
    write(tmp_path / "transformer" / "config.json", {"_class_name": "PixArtTransformer2DModel"})
    assert "PixArtTransformer2DModel" in refused(capsys, "verify", f"--pipeline={tmp_path}")


def test_what_no_other_program_reads_is_refused_with_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = sit.build({"num_classes": 2, "image_channels": 1, "width": 8, "depth": 1, "heads": 2})
    file = tmp_path / "SiT.safetensors"
    family.save(family.init(jax.random.key(0)), file)
    for place, is_what in ((file, "is one file"), (teacher_run(), "is a run")):
        message = refused(capsys, "verify", f"--pipeline={place}")
        assert f"{place} {is_what}, expected the folder of a diffusers pipeline" in message
        assert "--weights" in message and "no installed program reads the weights" in message
    own = shutil.copytree(GOLDEN / "dit", tmp_path / "dit")
    message = refused(capsys, "verify", f"--pipeline={own}", f"--weights={file}")
    assert f"{file}: got weights with one embedding of the time for all blocks" in message
    empty = refused(capsys, "verify", f"--pipeline={own.parent}")
    assert "has none of model_index.json, config.json, unet/config.json" in empty
    absent = refused(capsys, "verify", f"--pipeline={tmp_path / 'absent'}")
    assert "absent does not exist, expected the folder of a diffusers pipeline" in absent


def test_compare_finds_the_array_that_is_furthest_off() -> None:
    theirs = {"a": np.array([1.0, -4.0]), "b": np.array([0.5])}
    off = {"a": np.array([1.0, -4.02]), "b": np.array([0.505])}
    row = compare("vae", off, theirs, tolerance=1.1e-2)
    assert (row.verdict, row.note) == ("agrees", "b")
    assert row.absolute == pytest.approx(0.005) and row.relative == pytest.approx(0.01)
    assert compare("vae", off, theirs, tolerance=9e-3).verdict == "differs"
    plain = compare("vae", off, theirs, tolerance=1e-2, relative=False)
    assert (plain.verdict, plain.note) == ("differs", "a")


def test_compare_of_other_shapes_or_of_nan_differs() -> None:
    a, b = {"a": np.zeros(2)}, {"a": np.zeros(3)}
    assert "shape [2], theirs [3]" in compare("vae", a, b, tolerance=1.0).note
    nan = {"a": np.array([0.0, np.nan])}
    assert compare("vae", nan, a, tolerance=1.0).verdict == "differs"
    assert compare("vae", a, nan, tolerance=1.0).verdict == "differs"


def test_verdict_is_that_of_the_worst_part() -> None:
    def report(*verdicts: str) -> Report:
        return Report(tuple(Row("x", it, None, None, "") for it in verdicts))  # type: ignore[arg-type]

    assert report("agrees", "agrees").exit_code == 0
    assert report("agrees", "not compared").verdict == "not compared"
    assert report("not compared", "damaged").verdict == "differs"
    assert report("not compared").exit_code == report("differs").exit_code == 1


def tiny(kind: str) -> Path:
    """Return a pipeline of odd sizes that diffusers made."""
    pytest.importorskip("torch", reason="it is compared with diffusers")
    pytest.importorskip("diffusers")
    from tests.pipelines import tiny_pipeline

    return tiny_pipeline(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pipelines_of_diffusers_agree(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.png"
    assert dmd2("verify", f"--pipeline={tiny(kind)}", f"--out={out}", "--tolerance=1e-5") == 0
    rows = rows_of(capsys.readouterr().out)
    assert all("agrees" in rows[part] for part in ("tokenizer", "prompts joined", "vae", "images"))
    assert out.is_file()


def test_pipeline_of_classes_agrees_and_its_images_are_guided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tiny("dit"), tmp_path / "x.png"
    assert dmd2("verify", f"--pipeline={folder}", f"--out={out}", "--tolerance=3e-5") == 0
    told = capsys.readouterr().out
    rows = rows_of(told)
    assert [line.split()[1] for line in list(rows.values())[:3]] == ["agrees"] * 3
    assert list(rows)[:3] == ["transformer", "vae", "images"]
    assert "of the classes" in rows["images"] and "not read" not in told and out.is_file()
    subject = open_subject(str(folder))
    assert subject.guidance == 4.0 and subject.sampler.nfe == 8
    report, _ = check.verify(subject._replace(guidance=None), 3e-5)  # theirs alone
    assert {row.part: row.verdict for row in report.rows}["images"] == "differs"


@pytest.mark.parametrize(
    "kind, times", [("sd15", (999.0, 499.0)), ("sd3", (0.9, 0.4)), ("dit", (999.0, 499.0))]
)
def test_students_agree_by_their_own_steps(kind: str, times: tuple[float, ...]) -> None:
    subject = open_subject(str(tiny(kind)))
    sampler = few_step_sampler(subject.family.denoiser, times)
    report, pictures = check.verify(
        subject._replace(sampler=sampler, times=times, guidance=None), 3e-5
    )
    assert report.verdict == "agrees" and set(pictures) == {"dmd2_jax", "diffusers"}


@pytest.mark.parametrize(
    "kind, times",
    [("sd15", "999,499"), ("sd3", "1,0.4"), ("z_image", "1,0.4"), ("qwen_image", "1,0.4")],
)
def test_exported_student_agrees_with_its_own_scheduler(
    kind: str, times: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, out = tiny(kind), tmp_path / "student"
    part = "unet" if kind == "sd15" else "transformer"
    weights = pipeline / part / "diffusion_pytorch_model.safetensors"
    words = [f"--weights={weights}", f"--pipeline={pipeline}", f"--times={times}", f"--out={out}"]
    assert dmd2("export", *words) == 0
    assert dmd2("verify", f"--pipeline={out}", f"--out={tmp_path / 'x.png'}") == 0
    told = capsys.readouterr().out
    assert "agrees" in rows_of(told)["images"] and "not read: README.md" in told
    assert "digests.json" not in told


def dit(folder: Path) -> Subject:
    """Return a class-conditional network of odd sizes that diffusers made."""
    torch = pytest.importorskip("torch", reason="it is compared with diffusers")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=4,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=6,
        num_embeds_ada_norm=7,
    )
    network.save_pretrained(folder)
    return open_subject(str(folder))


def test_wrong_weight_is_a_difference_of_its_part(tmp_path: Path) -> None:
    subject = dit(tmp_path)
    assert check.verify(subject, 3e-5)[0].verdict == "agrees"
    params = jax.tree.map(np.array, subject.load())
    tensors = subject.family.model.to_tensors(params)
    name = next(n for n in tensors if n.endswith("attn1.to_v.weight"))
    tensors[name] = 1.2 * tensors[name]
    wrong = subject.family.model.from_tensors(tensors)
    report, _ = check.verify(subject._replace(load=lambda: wrong), 3e-5)
    assert [(row.part, row.verdict) for row in report.rows] == [("network", "differs")]
    assert report.rows[0].note.startswith("x_0 at t=")


def test_wrong_text_encoder_is_named(tmp_path: Path) -> None:
    subject = open_subject(str(tiny("sd15")))
    read = ours.read_component

    def wrong(folder: Path, **options: object) -> object:
        model, params = read(folder, **options)
        return model, jax.tree.map(lambda x: x * 1.01, params)

    with (
        mock.patch.object(ours, "read_component", wrong),
        mock.patch.object(check._Check, "network", return_value=None),
        mock.patch.object(check._Check, "autoencoder"),
    ):
        report, _ = check.verify(subject, 3e-5)
    verdicts = {row.part: row.verdict for row in report.rows}
    assert verdicts == {
        "tokenizer": "agrees",
        "text_encoder": "differs",
        "prompts joined": "differs",
    }


def test_weights_that_diffusers_does_not_hold_are_refused_by_name(tmp_path: Path) -> None:
    subject = dit(tmp_path)
    extra = mock.patch.object(
        type(subject.family), "to_state_dict", return_value={"lora.weight": np.zeros(1)}
    )
    with extra, pytest.raises(Refused, match=r"does not hold these weights.*lora\.weight"):
        check.verify(subject._replace(replaced=True), 1e-3)
