"""The commands with a bucket in place of folders, through the clients that users have."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from tests.buckets import contents, emulated_bucket, emulated_s3, is_there
from tests.commands.test_processes import finish, start
from tests.compiling import flags
from tests.tiny import RECIPE, cache_folder, distill_words, dmd2, refused, teacher_run, unnamed
from tests.tiny_unet import RECIPE as UNET

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

ROOT = Path(__file__).resolve().parents[2]
T = f"--config={RECIPE}"
RESULTS = ("metrics.jsonl", "teacher.safetensors", "grid_0000006.png")
"""What does not depend on where a run lies, nor on what it went through."""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, emulated_bucket() as place:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield place


def killed_and_resumed(workdir, mark):
    """Train a teacher whose process is killed at the sight of a name, and again to its end."""
    words = ["train-teacher", T, f"--workdir={workdir}"]
    # All are kept, or on a busy machine the first is gone before it is seen.
    often = ["--config.log.checkpoint_every=1", "--config.log.keep=9"]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": flags(),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "dmd2_jax.commands.main", *words, *often],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None:
        if is_there(workdir, mark):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.05)
    _, said = process.communicate()
    there = contents(workdir)
    assert mark in there, said.decode()
    assert b'"step": 1' in there["metrics.jsonl"]
    assert dmd2(*words) == 0
    return workdir


@pytest.fixture(scope="module")
def teacher(bucket):
    """A teacher in the bucket, whose process was killed after its first checkpoint."""
    return killed_and_resumed(f"{bucket}/runs/teacher", "checkpoints/1/commit_success.txt")


@pytest.mark.slow
def test_a_run_that_was_killed_in_a_bucket_ends_as_one_on_a_disk(teacher):
    there, peace = contents(teacher), teacher_run()
    for name in RESULTS:
        assert unnamed(there[name]) == unnamed((peace / name).read_bytes())


def test_a_finished_run_leaves_no_probe_or_partial_file_in_a_bucket(teacher):
    names = {name for name in contents(teacher) if not name.startswith("checkpoints/")}
    assert names == {file.name for file in teacher_run().iterdir() if file.is_file()}


def test_a_damaged_checkpoint_of_a_bucket_is_set_aside(bucket, teacher, caplog):
    import fsspec

    workdir = f"{bucket}/runs/damaged"
    client, root = fsspec.core.url_to_fs(workdir, use_listings_cache=False)
    for name, content in contents(teacher).items():
        client.pipe_file(f"{root}/{name}", content)
    newest = max(int(name.split("/")[1]) for name in contents(teacher) if "checkpoints/" in name)
    client.pipe_file(f"{root}/checkpoints/{newest}/meta/metadata", b"{}")
    assert dmd2("train-teacher", T, f"--workdir={workdir}", "--config.teacher.steps=7") == 0
    assert f"checkpoint {newest} of {workdir}/checkpoints is damaged" in caplog.text
    there = contents(workdir)
    assert f"checkpoints/damaged-{newest}/meta/metadata" in there
    assert there["metrics.jsonl"].count(b"\n") == 7


def test_commands_read_a_bucket_and_write_to_it(bucket, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = f"{bucket}/out"
    assert dmd2("report", f"--workdir={teacher}", f"--out={out}/report.html") == 0
    assert dmd2("sample", f"--workdir={teacher}", "--num=4", f"--out={out}/x.png") == 0
    assert dmd2("convert", teacher, f"{out}/teacher.bin") == 0
    assert dmd2("convert", T, f"{out}/teacher.bin", f"{out}/teacher.safetensors") == 0
    assert dmd2("evaluate", f"--workdir={teacher}", f"--out={out}/figures.json") == 0
    there = contents(out)
    names = {"report.html", "x.png", "teacher.bin", "teacher.safetensors", "figures.json"}
    assert set(there) == names
    converted, own = (load(it["teacher.safetensors"]) for it in (there, contents(teacher)))
    assert converted.keys() == own.keys()
    assert all(converted[name].tobytes() == own[name].tobytes() for name in own)
    assert b"grid" in there["report.html"] and there["x.png"].startswith(b"\x89PNG")
    assert not list(tmp_path.iterdir())


def test_single_images_go_to_a_bucket_and_are_made_once(bucket, teacher, tmp_path, capsys):
    words = ["sample", f"--workdir={teacher}", "--num=4"]
    for name in ("images", "images.npz"):
        assert dmd2(*words, f"--out={bucket}/single/{name}") == 0
        assert dmd2(*words, f"--out={tmp_path}/{name}") == 0
        capsys.readouterr()
        assert dmd2(*words, f"--out={bucket}/single/{name}") == 0
        assert "which were there already" in capsys.readouterr().out
        other = refused(capsys, *words, "--seed=7", f"--out={bucket}/single/{name}")
        assert "holds what was made otherwise" in other
    there = contents(f"{bucket}/single")
    assert there == {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }


def test_data_of_a_bucket_are_those_that_were_written_there(bucket, tmp_path, monkeypatch):
    from dmd2_jax import data
    from dmd2_jax.config.load import load_config

    monkeypatch.chdir(tmp_path)
    pytest.importorskip("array_record")
    assert dmd2("data", T, f"--write={bucket}/digits") == 0
    config = load_config(str(RECIPE))
    digits = data.load(config.data, "train", 8)
    config.data.name, config.data.path = "array_record", f"{bucket}/digits"
    again = data.load(config.data, "train", 8)
    numbers = range(0, len(digits), 97)
    assert len(again) == len(digits)
    for name, array in digits.examples(list(numbers)).items():
        assert (again.examples(list(numbers))[name] == array).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_distillation_in_a_bucket_equals_one_on_a_disk(bucket, teacher, tmp_path):
    workdir = f"{bucket}/runs/student"
    pairs = "--config.distill.regression_weight=0.25"
    assert dmd2(*distill_words(tmp_path / "disk", pairs)) == 0
    there = ["distill", T, f"--workdir={workdir}", f"--config.teacher.weights={teacher}", pairs]
    assert dmd2(*there) == 0
    found = contents(workdir)
    for name in ("student.safetensors", "metrics.jsonl", "teacher_pairs/x_0_00000.npy"):
        assert unnamed(found[name]) == unnamed((tmp_path / "disk" / name).read_bytes())


def test_a_bucket_that_is_not_there_is_refused(bucket, capsys):
    message = refused(capsys, "train-teacher", T, "--workdir=gs://no-such-bucket/run", "--dry_run")
    assert "gs://no-such-bucket/run is not there, or its bucket is not" in message


def test_a_run_copied_to_s3_is_read_and_written_beside(tmp_path, monkeypatch):
    import fsspec

    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with emulated_s3() as place:
        run, out = f"{place}/runs/teacher", f"{place}/out"
        client, root = fsspec.core.url_to_fs(run, use_listings_cache=False)
        client.put(f"{teacher_run()}/", root, recursive=True)
        assert dmd2("report", f"--workdir={run}", f"--out={out}/report.html") == 0
        last = "--checkpoint=6"
        assert dmd2("sample", f"--workdir={run}", "--num=4", last, f"--out={out}/x.png") == 0
        weights = f"--weights={run}/teacher.safetensors"
        words = ["sample", f"--workdir={teacher_run()}", weights, "--num=4"]
        assert dmd2(*words, f"--out={out}/y.png") == 0
        found = contents(out)
    assert set(found) == {"report.html", "x.png", "y.png"}
    assert found["x.png"] == found["y.png"]  # of the same weights, one exported, one of a state
    assert not (tmp_path / "s3:").exists()


def test_clients_are_not_those_of_tensorflow():
    """It is installed with the extra tfds, and knows no s3://."""
    from etils.epath import gpath

    assert not gpath._is_tf_installed()


@pytest.mark.slow
def test_a_run_in_s3_that_was_killed_ends_as_one_on_a_disk(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with emulated_s3() as place:
        run = killed_and_resumed(f"{place}/runs/teacher", "checkpoints/1/meta/metadata")
        assert dmd2("sample", f"--workdir={run}", "--num=4", f"--out={place}/x.png") == 0
        there = contents(run)
    for name in RESULTS:
        assert unnamed(there[name]) == unnamed((teacher_run() / name).read_bytes())
    assert not [name for name in there if name.endswith("unfinished.txt")]
    assert not list((tmp_path / "dmd2_jax" / "staging").iterdir())


@pytest.mark.slow
def test_two_processes_write_one_run_to_a_bucket_and_one_goes_on(bucket, capsys, tmp_path):
    workdir = f"{bucket}/runs/both"
    # Of tokens some gradients are zero but for rounding, which differs and which Adam makes a step.
    words = ["train-teacher", f"--config={UNET}", f"--workdir={workdir}"]
    assert dmd2(*words[:-1], f"--workdir={tmp_path}") == 0
    together = ["--config.mesh.data=2", "--config.log.checkpoint_every=6"]
    ended = finish(start(*words, *together, XLA_FLAGS=flags()))
    assert [code for code, _, _ in ended] == [0, 0], ended
    there = contents(workdir)
    assert {"checkpoints/6/state/ocdbt.process_1/manifest.ocdbt", "metrics.jsonl"} <= set(there)
    assert there["metrics.jsonl"].count(b'"step": 6') == 1
    expected = load_file(tmp_path / "teacher.safetensors")
    for name, tensor in load(there["teacher.safetensors"]).items():
        np.testing.assert_allclose(tensor, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    capsys.readouterr()
    assert dmd2(*words) == 0
    assert "step 6 of 6: already finished" in capsys.readouterr().err
    assert contents(workdir)["teacher.safetensors"] == there["teacher.safetensors"]
