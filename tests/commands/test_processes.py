"""Two processes of four devices each, as one run, through the command."""

import atexit
import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore
from safetensors.numpy import load_file

from dmd2_jax.recipe.open import build_family
from dmd2_jax.run.metrics import read_metrics
from dmd2_jax.runtime.integrity import step_folders
from tests.compiling import flags
from tests.tiny import RECIPE, cache_folder, dmd2, get_config, scratch

ROOT = RECIPE.parent.parent
# The step that a batch is drawn for must be the same in all processes; one step is no draw.
STUDENT = ("--config.distill.student_times=1,0.5", "--config.distill.cycles=3")
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=4")
OFFLOAD = "--config.mesh.offload=teacher,optimizer"  # changes no number, but how arrays travel
SAVED = 75


SLURM_PORTS = 61440  # JAX takes the port of this number + SLURM_JOB_ID


def free_port(said_by: str) -> int:
    """Return a port that nothing listens on, and that can be said so."""
    for port in range(SLURM_PORTS, 2**16) if said_by == "slurm" else [0]:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return free.getsockname()[1]
    raise AssertionError(f"no port is free from {SLURM_PORTS}")


def place(
    said_by: str, port: int, count: int, number: int
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return variables and words that tell a process its place."""
    address = f"127.0.0.1:{port}"
    if said_by == "flags":
        return {}, (
            f"--coordinator={address}",
            f"--num_processes={count}",
            f"--process_id={number}",
        )
    if said_by == "slurm":
        return {
            "DMD2_DISTRIBUTED": "1",
            "SLURM_JOB_ID": str(port - SLURM_PORTS),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
        }, ()
    return {
        "DMD2_COORDINATOR": address,
        "DMD2_NUM_PROCESSES": str(count),
        "DMD2_PROCESS_ID": str(number),
    }, ()


def start(
    *words: object,
    count: int = 2,
    told: tuple[int, ...] = (2, 2),
    said_by: str = "variables",
    **more: str,
) -> list[Any]:
    """Start the processes of one run of `dmd2 WORDS`."""
    port = free_port(said_by)
    processes: list[Any] = []
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags()} --xla_force_host_platform_device_count={8 // count}",
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder()),
        "DMD2_HEARTBEAT_SECONDS": "10",
        "DMD2_EXIT_WHEN_SAVED": str(SAVED),
        **more,
    }
    command = [sys.executable, "-m", "dmd2_jax.commands.main", *map(str, words)]
    for i in range(count):
        variables, flags_of_place = place(said_by, port, told[i], i)
        process = subprocess.Popen(
            [*command, *flags_of_place],
            env=environment | variables,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        atexit.register(process.kill)  # where a test fails before it has ended
        processes.append(process)
    return processes


def finish(processes: list[Any], timeout: float = 900) -> list[tuple[int, str, str]]:
    """Return (exit code, standard output, standard error) of each."""
    ended = []
    for process in processes:
        out, errors = process.communicate(timeout=timeout)
        ended.append((process.returncode, out, errors))
    return ended


def together(*words: object, said_by: str = "variables") -> list[tuple[int, str, str]]:
    ended = finish(start(*words, said_by=said_by))
    assert [code for code, _, _ in ended] == [0, 0], ended
    return ended


def distill(workdir: Path, *more: object) -> list[object]:
    return [
        "distill",
        f"--config={RECIPE}",
        f"--workdir={workdir}",
        f"--config.teacher.weights={teacher()}",
        *STUDENT,
        *MESH,
        *more,
    ]


@functools.cache
def teacher() -> Path:
    """Make a teacher of random weights: what is compared needs no better one."""
    config = get_config()
    family, noise = build_family(config), np.random.default_rng(0)
    folder = scratch()
    # The network's last layers begin at zero, which would hide the rest of it.
    weights = jax.tree.map(
        lambda p: p + 0.02 * noise.normal(size=p.shape).astype(np.float32),
        family.init(jax.random.key(0)),
    )
    family.save(weights, folder / "teacher.safetensors")
    return folder


@functools.cache
def alone() -> Path:
    """Distil in one process of eight devices."""
    workdir = scratch() / "alone"
    assert dmd2(*distill(workdir)) == 0
    return workdir


@functools.cache
def both() -> tuple[Path, list[tuple[int, str, str]]]:
    """Distil in two processes of four devices, with what may wait in the host's memory there."""
    workdir = scratch() / "both"
    return workdir, together(*distill(workdir, OFFLOAD))


def weights(workdir: Path) -> np.ndarray:
    tensors = load_file(workdir / "student.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)]).astype(np.float64)


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    got, expected = both()[0], alone()
    assert relative(weights(got), weights(expected)) <= 1e-5
    for name in (
        "generator_loss",
        "critic_loss",
        "gan_generator_loss",
        "generator_grad_norm",
        "critic_grad_norm",
    ):
        np.testing.assert_allclose(
            [row[name] for row in read_metrics(got / "metrics.jsonl")],
            [row[name] for row in read_metrics(expected / "metrics.jsonl")],
            rtol=1e-5,
        )


@pytest.mark.slow
def test_only_the_first_process_speaks_and_writes_each_line_once() -> None:
    workdir, ended = both()
    (_, first, _), (_, second, errors) = ended
    assert "student.safetensors" in first
    assert second == ""
    assert "cycle" not in errors
    assert [row["step"] for row in read_metrics(workdir / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_every_process_writes_its_part_of_a_checkpoint() -> None:
    # Each has a replica of every array, and Orbax a database for what each one writes of it. Its
    # files hold earlier versions of values too: what counts are the values.
    folder = both()[0]
    # Generator and critic with two moments each, and an average.
    whole = 7 * (folder / "student.safetensors").stat().st_size
    parts = [_chunks(folder / "checkpoints" / "3" / "state", number) for number in range(2)]
    assert not parts[0].keys() & parts[1].keys()  # nothing is written twice,
    sizes = [sum(part.values()) for part in parts]
    assert sum(sizes) == pytest.approx(whole, rel=0.05)  # all is written,
    assert min(sizes) > 0.1 * whole  # and neither leaves it to the other


def _chunks(state: Path, number: int) -> dict[bytes, int]:
    """Return the parts of arrays that a process has written, with their bytes."""
    base = f"file://{state}/ocdbt.process_{number}/"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    names = [name for name in store.list().result() if not name.endswith(b".zarray")]
    return {name: len(store.read(name).result().value) for name in names}


@pytest.mark.slow
def test_checkpoint_of_two_processes_restores_in_one_bit_for_bit(capsys: Any) -> None:
    # The digests in its manifest are of the arrays as the two processes held them.
    workdir = both()[0]
    before = weights(workdir)
    (workdir / "student.safetensors").unlink()
    assert dmd2(*distill(workdir)) == 0  # it is at its end: restored, exported, no cycle taken
    assert "damaged" not in capsys.readouterr().err
    np.testing.assert_array_equal(weights(workdir), before)


@pytest.mark.slow
def test_checkpoint_of_one_process_restores_in_two_bit_for_bit() -> None:
    workdir = alone()
    before = weights(workdir)
    (workdir / "student.safetensors").unlink()
    ended = together(*distill(workdir), said_by="flags")
    assert not any("damaged" in errors for _, _, errors in ended)
    np.testing.assert_array_equal(weights(workdir), before)


def wait_for_checkpoint(workdir: Path, after: int, processes: list[Any]) -> int:
    """Return the number of a finished checkpoint beyond `after`."""
    for _ in range(3000):
        done = [step for step in step_folders(workdir / "checkpoints") if step > after]
        if done:
            return max(done)
        if any(process.poll() is not None for process in processes):
            raise AssertionError(finish(processes))
        time.sleep(0.1)
    raise AssertionError("no checkpoint in 300 seconds")


@pytest.mark.slow
def test_preempted_then_killed_run_resumes_on_fewer_processes() -> None:
    # A teacher, whose step is traced in a moment; its loop is the student's too.
    workdir = scratch() / "interrupted"

    def teach(steps: int) -> list[object]:
        return [
            "train-teacher",
            f"--config={RECIPE}",
            f"--workdir={workdir}",
            *MESH,
            f"--config.teacher.steps={steps}",
            "--config.log.keep=1",
            "--config.log.teacher_grid_every=100000",
        ]

    endless = teach(100000)

    # A notice to one process stops both, after the same cycle, with a checkpoint of it.
    processes = start(*endless)
    step = wait_for_checkpoint(workdir, 0, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = finish(processes)
    assert [code for code, _, _ in ended] == [SAVED, SAVED], ended
    assert "To resume" in ended[0][2]

    # The death of one ends the other with a message, and leaves the finished checkpoints.
    processes = start(*endless)
    stopped = max(step_folders(workdir / "checkpoints"))
    assert stopped >= step
    reached = wait_for_checkpoint(workdir, stopped, processes)
    processes[1].kill()
    ended = finish(processes)
    assert ended[0][0] == 1
    assert "another process of this run has most likely died" in ended[0][2]

    # One process alone goes on from there.
    last = max(step_folders(workdir / "checkpoints"))
    assert last >= reached
    assert dmd2(*teach(last + 1)) == 0
    assert read_metrics(workdir / "metrics.jsonl")[-1]["step"] == last + 1


@pytest.mark.slow
def test_processes_told_different_counts_are_refused() -> None:
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={scratch() / 'never'}"]
    ended = finish(start(*words, told=(2, 3), DMD2_JOIN_SECONDS="120"))
    assert [code for code, _, _ in ended] == [2, 2], ended
    for _, _, errors in ended:
        assert "told of [2, 3] processes, expected the same" in errors


@pytest.mark.slow
def test_mesh_without_rows_for_each_process_is_refused() -> None:
    words = ["train-teacher", f"--config={RECIPE}", f"--workdir={scratch() / 'never'}", "--dry_run"]
    words += ["--config.mesh.data=1", "--config.mesh.tensor=8"]
    ended = finish(start(*words, said_by="slurm"))
    assert [code for code, _, _ in ended] == [2, 2], ended
    assert "data x fsdp a multiple of 2" in ended[0][2]


@pytest.mark.slow
def test_commands_of_one_process_refuse_to_be_several() -> None:
    ended = finish(start("sample", "--workdir=nowhere", count=1, told=(1,)))
    assert ended[0][0] == 2
    assert "`dmd2 sample` is the work of one process" in ended[0][2]
