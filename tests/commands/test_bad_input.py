"""Bad input to the command: a message with the remedy, an exit code, and nothing written over."""

import functools
import shutil
import struct
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny_unet
from tests.tiny import RECIPE, contents, distill_words, refused, student_run, teacher_run


def train(workdir: Path, *more: str, recipe: Path = RECIPE) -> list[str]:
    return ["train-teacher", f"--config={recipe}", f"--workdir={workdir}", *more]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.generatr_lr=1", "did you mean 'optim.generator_lr'?"),
        ("distill.cycles=many", "expected int; it is 4 in the recipe"),
        ("data.name=digit", "did you mean 'digits'?"),
        ("model.family=emd", "did you mean 'edm'?"),
        ("model.network=unet", "model.network='unet'"),
        ("distill.critic_turns=0", "expected at least 1 (K of TTUR"),
        ("distill.student_times=20,80", "strictly decreasing"),
        ("distill.first_trained_step=1", "one of the student's steps, 0..0"),
        ("model.sigma_min=100", "expected sigma_min < sigma_max"),
        ("distill.batch_size=0", "expected at least 1"),
        ("optim.critic_lr=-1", "expected a positive number"),
        ("mesh.data=4096", "which takes 4096 devices, expected a mesh for the 8 cpu devices"),
        ("model.num_classes=7", "expected 10 as in digits, or 0"),
        ("model.image_channels=3", "expected 1 as in the images of digits"),
        ("model.channel_mult=1,2,4,8,16", "expected it to be divisible by 16"),
        ("model.scan_layers=True", "--config.model.scan_layers is no key"),
    ],
)
def test_config_values_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    words = tiny_unet.distill_words(tmp_path / "run", f"--config.{override}")
    assert message in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_batch_that_does_not_split_over_the_devices_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--config.mesh.data=8", "--config.teacher.batch_size=12")
    message = refused(capsys, *train(tmp_path / "run", *more))
    assert "batch_size=12 must be divisible by data shards=8; try 16." in message
    assert not (tmp_path / "run").exists()


def test_parts_of_a_batch_that_do_not_split_over_the_devices_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--config.mesh.data=4", "--config.distill.microbatches=4")
    message = refused(capsys, *distill_words(tmp_path / "run", *more))
    assert "microbatches=4 makes parts of 2 out of batch_size=8" in message
    assert "expected parts divisible by data shards=4; try microbatches=2." in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train-teacher", "distill"])
@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (("data=3", "fsdp=4"), "which takes 12 devices, expected a mesh for the 8 cpu devices"),
        (("data=-1", "fsdp=3"), "a multiple of 3 devices, expected a mesh for the 8 cpu devices"),
        (("data=3",), "which takes 3 devices, expected a mesh for the 8 cpu devices"),
        (("tensor=2",), "mesh.tensor=2, but no parameter is split over it"),
        (("rules='conv0/kernel=-:-:-:model'",), "names ['model'], expected axes of"),
        (("rules='conv0/kernel=-:-:fsdp:fsdp'",), "names ['fsdp'] twice, expected each axis once"),
        (("rules='nothing=fsdp'",), "no parameter's path matches 'nothing', expected for example"),
        (("rules='(=fsdp'",), "is no regular expression"),
        (("fsdp=2", "rules='conv0/kernel=fsdp'"), "does not fit params/"),
    ],
)
def test_meshes_are_refused_before_anything_compiles(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    mesh: tuple[str, ...],
    message: str,
) -> None:
    train_unet = functools.partial(train, recipe=tiny_unet.RECIPE)
    make = tiny_unet.distill_words if command == "distill" else train_unet
    words = make(tmp_path / "run", "--dry_run", *(f"--config.mesh.{word}" for word in mesh))

    def compiled(*arguments: object) -> None:
        raise AssertionError("a program is compiled")

    monkeypatch.setattr("dmd2_jax.training.teacher.compile_step", compiled)
    monkeypatch.setattr("dmd2_jax.recipe.distillation.make_cycle", compiled)
    assert message in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_workdir_of_another_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(teacher_run())
    message = refused(capsys, *train(teacher_run(), "--config.teacher.lr=0.5"))
    assert "teacher.lr: got 0.5, the run there has 0.001" in message
    assert contents(teacher_run()) == before


def test_workdir_of_another_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(teacher_run())
    assert "holds a run of `train-teacher`" in refused(capsys, *distill_words(teacher_run()))
    assert contents(teacher_run()) == before


def test_workdir_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("keep me")
    assert "choose another workdir" in refused(capsys, *train(file / "run"))
    assert "choose another workdir" in refused(capsys, *train(file))
    assert file.read_text() == "keep me"


def test_workdir_with_a_damaged_record_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"command": ')
    assert "config.json cannot be read" in refused(capsys, *train(tmp_path))
    assert contents(tmp_path) == {"config.json": b'{"command": '}


def test_disk_without_room_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dmd2_jax.run.folder.shutil.disk_usage", lambda path: usage)
    assert "for 4 more checkpoints" in refused(capsys, *distill_words(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_disk_that_fills_while_saving_leaves_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(teacher_run(), workdir)
    before = contents(workdir / "checkpoints")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    message = refused(capsys, *train(workdir, "--config.teacher.steps=8"), code=1)
    assert "No space left on device" in message
    assert "[2, 4, 6] are untouched: free some disk" in message
    assert contents(workdir / "checkpoints") == before


IDX_IMAGES, IDX_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def fashion(folder: Path, images: np.ndarray, labels: np.ndarray, cut: int = 0) -> Path:
    """Write IDX files as Fashion-MNIST has them, the images' last `cut` bytes missing."""
    folder.mkdir()
    for name, array in ((IDX_IMAGES, images), (IDX_LABELS, labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = header + array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(content[: len(content) - (cut if array.ndim == 3 else 0)])
    return folder


@pytest.mark.parametrize(
    ("size", "label", "cut", "message"),
    [
        (28, 10, 0, "expected 0..9"),
        (27, 1, 0, "27"),
        (28, 1, 100, "truncated"),
    ],
)
def test_data_that_are_not_as_they_should_be_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: int,
    label: int,
    cut: int,
    message: str,
) -> None:
    images, labels = np.zeros((8, size, size)), np.full(8, label)
    folder = fashion(tmp_path / "data", images, labels, cut)
    more = ("data.name=fashion_mnist", "model.resolution=32")
    words = train(
        tmp_path / "run", f"--config.data.path={folder}", *(f"--config.{m}" for m in more)
    )
    assert message in refused(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_data_that_are_missing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("data.name=fashion_mnist", "model.resolution=32")
    words = train(tmp_path / "run", *(f"--config.{m}" for m in more))
    message = refused(capsys, *words, f"--config.data.path={tmp_path}")
    assert IDX_IMAGES in message
    assert "dataset-fashion-mnist" in message


def test_data_of_another_resolution_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--config.model.resolution=16",)
    assert "expected 8; set it to 8" in refused(capsys, *train(tmp_path / "run", *more))


def test_weights_that_do_not_fit_are_refused_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(tiny_unet.teacher() / "teacher.safetensors")
    names = sorted(tensors)
    del tensors[names[0]]
    tensors["model.nonsense"] = np.zeros(3, np.float32)
    tensors[names[1]] = np.zeros((5, 6, 7), np.float32)
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    words = tiny_unet.distill_words(tmp_path / "run", f"--config.teacher.weights={file}")
    message = refused(capsys, *words)
    assert f"1 missing: {names[0]}" in message
    assert "1 extra: model.nonsense" in message
    assert f"1 misshapen: {names[1]} (got (5, 6, 7)" in message
    assert str(file) in message
    assert not (tmp_path / "run").exists()


def test_weights_that_are_truncated_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes((teacher_run() / "teacher.safetensors").read_bytes()[:5000])
    message = refused(capsys, *distill_words(tmp_path / "run", f"--config.teacher.weights={file}"))
    assert "cannot be read" in message


@pytest.mark.parametrize(
    ("weights", "message"),
    [("", "config.teacher.weights is empty"), ("nowhere", "no weights at nowhere")],
)
def test_weights_that_are_missing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str, message: str
) -> None:
    words = distill_words(tmp_path / "run", f"--config.teacher.weights={weights}")
    assert message in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num=0"], "--num=0, expected 1 or more"),
        (["--classes=3,10"], "expected class numbers in 0..9"),
        (["--classes=three"], "classes=three is no class, expected class numbers in 0..9"),
        (["--ema=0.5"], "expected one of optim.ema_decays=(0.9,)"),
        (["--weights=nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["--out=no/such/folder/x.png"], "expected no/such/folder to exist"),
        (["--config.seed=1"], "takes its config from the run folder"),
    ],
)
def test_sample_refuses(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refused(capsys, "sample", f"--workdir={student_run()}", *words)


def test_sample_and_evaluate_refuse_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("sample", "evaluate"):
        for folder in (tmp_path, tmp_path / "misspelt"):
            assert "no run in workdir" in refused(capsys, command, f"--workdir={folder}")


def test_sample_refuses_the_student_of_a_teachers_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", f"--workdir={teacher_run()}", "--which=student")
    assert "holds a run of `train-teacher`" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND"),
        (["distil"], "invalid choice: 'distil'"),
        (["distil"], "did you mean 'distill'?"),
        (["train_techer"], "did you mean 'train-teacher'?"),
        (["my-command"], "`dmd2 --help` says what they do"),
        (["distill"], "arguments are required: --workdir"),
        (["distill", "--workdir=x"], "no --config, and no run in --workdir=x"),
        (["train_teacher", "--workdir=x"], "begin a run with --config=configs/digits.py"),
        (["distill", "--config=nowhere.py", "--workdir=x"], "--config=nowhere.py is no file"),
        (["distill", "--config=digits", "--workdir=x", "--config.seed"], "has no value"),
        (["distill", "--config=digits", "--workdir=x", "--dryrun"], "--dryrun"),
        (["distill", "--workdir=x", "--dryrun"], "did you mean --dry_run?"),
        (["distill", "--workdr=x"], "did you mean --workdir?"),  # beside the one that is missing
        (["distill", "--num-proceses=2"], "did you mean --num_processes?"),
        (["sample", "--workdir=x", "--batchsize=4"], "did you mean --batch_size?"),
    ],
)
def test_command_lines_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []
