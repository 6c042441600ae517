"""`dmd2 convert`: between files, from runs and from the Hub; what it proves and what it refuses."""

import itertools
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmd2_jax.weights import hub
from dmd2_jax.weights.weight_files import read_weights, write_weights
from tests import tiny_unet
from tests.tiny import RECIPE, contents, distill_words, dmd2, refused, student_run, teacher_run
from tests.weights import make

EDM_PKL = make.HERE / "edm.pkl"


def tensors_of(path: Path) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in read_weights(path).tensors.items()}


@pytest.fixture
def edm_recipe(tmp_path: Path) -> Path:
    """Return a recipe of edm.pkl's network, made of the lines that the command prints."""
    from dmd2_jax.commands.convert.convert import recipe_lines

    lines = [f"    {line}" for line in recipe_lines(str(EDM_PKL)).splitlines()]
    head = [
        "from dmd2_jax.config import defaults",
        "def get_config():",
        "    config = defaults.get_config()",
    ]
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "its.py").write_text("\n".join([*head, *lines, "    return config", ""]))
    return folder / "its.py"


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pth"])
def test_convert_writes_the_tensors_of_an_edm_pkl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"x.{suffix}"
    assert dmd2("convert", EDM_PKL, out) == 0
    assert tensors_of(out) == tensors_of(EDM_PKL)
    text = capsys.readouterr().out
    assert f"read:    {EDM_PKL} (its 'ema')" in text
    assert f"written: {out}, 123 tensors, 5,717 parameters" in text
    assert "equal bit for bit (float32, mean |x_0| " in text
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_convert_goes_there_and_back(tmp_path: Path, edm_recipe: Path) -> None:
    names = ["a.bin", "b.safetensors", "c.pt", "d.safetensors"]
    assert dmd2("convert", EDM_PKL, tmp_path / names[0]) == 0
    for source, target in itertools.pairwise(names):
        words = (tmp_path / source, tmp_path / target, f"--config={edm_recipe}")
        assert dmd2("convert", *words) == 0
    assert tensors_of(tmp_path / names[-1]) == tensors_of(EDM_PKL)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def test_convert_without_a_target_prints_lines_of_a_recipe(
    capsys: pytest.CaptureFixture[str], edm_recipe: Path
) -> None:
    capsys.readouterr()
    assert dmd2("convert", EDM_PKL) == 0
    text = capsys.readouterr().out
    assert "config.model.network = 'adm'\n" in text
    assert "config.model.channel_mult = (1, 1)\n" in text
    assert text.rstrip() in edm_recipe.read_text().replace("\n    ", "\n")


def test_convert_of_a_run_writes_what_the_run_trained(tmp_path: Path) -> None:
    for name, more in {
        "student": (),
        "student_ema_0.9": ("--ema=0.9",),
        "teacher": ("--which=teacher",),
    }.items():
        run = teacher_run() if name == "teacher" else student_run()
        out = tmp_path / f"{name}.bin"
        assert dmd2("convert", student_run(), out, *more) == 0
        assert tensors_of(out) == tensors_of(run / f"{name}.safetensors")


def test_torch_loads_an_exported_generator_by_the_original_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert dmd2("convert", student_run(), tmp_path / "pytorch_model.bin") == 0
    loaded = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    original = load_file(student_run() / "student.safetensors")
    assert {name: t.numpy().tobytes() for name, t in loaded.items()} == {
        name: t.tobytes() for name, t in original.items()
    }


def test_distill_and_sample_take_torch_files(tmp_path: Path) -> None:
    teacher = tmp_path / "pytorch_model.bin"
    assert dmd2("convert", teacher_run(), teacher) == 0
    words = [*distill_words(tmp_path / "run")[:-1], f"--config.teacher.weights={teacher}"]
    assert dmd2(*words, "--dry_run") == 0
    sample = ["sample", f"--workdir={student_run()}", "--which=teacher", "--num=2"]
    assert dmd2(*sample, f"--out={tmp_path / 'a.png'}") == 0
    assert dmd2(*sample, f"--out={tmp_path / 'b.png'}", f"--weights={teacher}") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_distill_takes_a_path_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(*what: str, revision: str) -> str:
        asked.append((*what, revision))
        return str(teacher_run() / "teacher.safetensors")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = "hf://one/repository/teacher.safetensors@v2"
    words = [*distill_words(tmp_path / "run")[:-1], f"--config.teacher.weights={path}"]
    hub.fetch.cache_clear()
    assert dmd2(*words, "--dry_run") == 0
    hub.fetch.cache_clear()
    # Once, however many look at the weights: v2 may be a branch that moves.
    assert asked == [("one/repository", "teacher.safetensors", "v2")]


def test_distill_refuses_an_edm_pkl_of_another_network_and_names_the_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tiny_unet.distill_words(tmp_path / "run")[:-1]
    words += [f"--config.teacher.weights={EDM_PKL}"]
    assert dmd2(*words) == 2
    message = capsys.readouterr().err
    assert "model.num_classes: got 3 in the file, expected 10 as in the config" in message
    assert "--config.model.channel_mult=1,1" in message
    assert not (tmp_path / "run").exists()


def test_convert_takes_the_critic_of_a_guidance_file(
    tmp_path: Path, edm_recipe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    its, source = tensors_of(EDM_PKL), tmp_path / "guidance.bin"
    tensors = read_weights(EDM_PKL).tensors
    both = {f"{p}_unet.{n}": t for p in ("fake", "real") for n, t in tensors.items()}
    write_weights({**both, "cls_pred_branch.0.weight": np.ones(3, np.float32)}, source)
    words = ("convert", source, tmp_path / "x.safetensors", f"--config={edm_recipe}")
    assert dmd2(*words) == 2
    with caplog.at_level(logging.WARNING):
        assert dmd2(*words, "--prefix=fake_unet.") == 0
    assert "left out cls_pred_branch.*, real_unet.*." in caplog.text
    assert tensors_of(tmp_path / "x.safetensors") == its


def test_convert_refuses_to_replace_a_file_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.bin"
    out.write_bytes(b"mine")
    assert dmd2("convert", EDM_PKL, out) == 2
    assert "exists, expected a new file" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert dmd2("convert", EDM_PKL, out, "--force") == 0
    assert tensors_of(out) == tensors_of(EDM_PKL)


@pytest.mark.parametrize("fault", ["tensors", "forward"])
def test_convert_writes_nothing_that_reads_back_otherwise(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    if fault == "tensors":
        from dmd2_jax.weights import weight_files

        honest = weight_files.write_safetensors

        def flip(tensors: dict, path: Path, notes: dict | None = None) -> None:
            name = sorted(tensors)[0]
            honest({**tensors, name: np.nextafter(tensors[name], np.float32(9))}, path, notes)

        monkeypatch.setattr(weight_files, "write_safetensors", flip)
    else:
        outputs = iter([np.zeros(2, np.float32), np.full(2, -0.0, np.float32)])  # equal, not alike
        monkeypatch.setattr("dmd2_jax.commands.convert.convert._forward", lambda *_: next(outputs))
    assert dmd2("convert", EDM_PKL, tmp_path / "x.safetensors") == 1
    assert "x.safetensors is not written: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{pkl}", "{tmp}/x.pkl"], "EDM's .pkl cannot be written"),
        (["{pkl}", "{tmp}/x.npz"], "ends in '.npz', expected one of"),
        (["{pkl}", "{tmp}/no/x.bin"], "expected {tmp}/no to exist"),
        (["{tmp}/nothing.bin", "{tmp}/x.bin"], "no weights at {tmp}/nothing.bin"),
        (["{bin}", "{tmp}/x.bin"], "holds tensors alone, expected a recipe"),
        (["{bin}"], "holds tensors alone, expected a recipe"),
        (["{pkl}", "{tmp}/x.bin", "--config.model.dropout=0"], "changes a recipe, expected one"),
        (["{pkl}", "{tmp}/x.bin", "--config={recipe}"], "model.num_classes: got 3 in the file"),
        (["{pkl}", "{tmp}/x.bin", "--ema=0.9"], "choose from a run folder"),
        (["{run}", "{tmp}/x.bin", "--config={recipe}"], "which holds its own; leave it away"),
        (["{run}", "{tmp}/x.bin", "--ema=0.5"], "expected one of optim.ema_decays=(0.9,)"),
        (["{tmp}", "{tmp}/x.bin"], "no run in workdir"),
        (["hf://one", "{tmp}/x.bin"], "is no path of the Hub"),
    ],
)
def test_convert_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    its = {"pkl": EDM_PKL, "tmp": tmp_path, "recipe": tiny_unet.RECIPE, "run": student_run()}
    its["bin"] = make.HERE / "tensors.pth"
    capsys.readouterr()
    before = contents(tmp_path)
    assert dmd2("convert", *(word.format(**its) for word in words)) == 2
    error = capsys.readouterr().err
    assert message.format(**its) in error and "Traceback" not in error
    assert contents(tmp_path) == before


def test_commands_refuse_a_hostile_pickle_and_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, file = tmp_path / "marker", tmp_path / "teacher.pkl"
    file.write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    words = distill_words(tmp_path / "run")[:-1]
    sample = ["sample", f"--workdir={student_run()}", f"--weights={file}"]
    for command in (
        [*words, f"--config.teacher.weights={file}"],
        [*sample, f"--out={tmp_path / 'x.png'}"],
        ["convert", file, tmp_path / "x.bin"],
    ):
        capsys.readouterr()
        assert dmd2(*command) == 2
        assert "got the global 'os.system'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["teacher.pkl"]


def test_convert_follows_no_name_in_a_file_out_of_its_folder(tmp_path: Path) -> None:
    source, folder = tmp_path / "x.safetensors", tmp_path / "out"
    folder.mkdir()
    tensors = load_file(teacher_run() / "teacher.safetensors")
    save_file({**tensors, "../../escaped": np.ones(1, np.float32)}, source)
    assert dmd2("convert", source, folder / "x.bin", f"--config={RECIPE}") == 2
    assert list(folder.iterdir()) == [] and len(list(tmp_path.iterdir())) == 2
    shutil.rmtree(folder)


def test_convert_of_what_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "convert", tmp_path / "misspelt", tmp_path / "x.bin")
    assert "misspelt, expected a file of weights; give another path." in message
