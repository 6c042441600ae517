"""The launch scripts for other machines: what they print, and what they tell the tools."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from tests.launching import (
    COMMAND,
    PLACES,
    ROOT,
    RUN,
    launch,
    note_takers,
    printed,
    told,
    variables,
)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    return note_takers(tmp_path)


def manifest(topology: str, *options: str) -> dict:
    yaml = pytest.importorskip("yaml")
    done = launch("gke", "--dry_run", *options, "slice", "image", topology, "files", *COMMAND)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_tpu_pod_copies_installs_and_runs_on_all_hosts(tools: Path) -> None:
    options = (
        "--project=p",
        "--setup=mount 'a b'",
        "--python=python3.11",
        "--gcloud=--internal-ip",
    )
    lines = [shlex.split(line) for line in printed("tpu_pod", *options).splitlines()]
    where = ["--zone=us-east5-a", "--worker=all", "--project=p", "--internal-ip"]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    assert lines[0] == ["mkdir", "-p", "build"]
    assert lines[1][:2] == ["bash", "-c"]
    assert lines[1][2].startswith("git ls-files -z --cached --others --exclude-standard | tar ")
    assert lines[2] == [*vm, "scp", "build/dmd2_jax.tar.gz", "slice:dmd2_jax.tar.gz", *where]
    assert lines[3][:-1] == [*vm, "ssh", "slice", *where]
    remote = lines[3][-1].removeprefix("--command=")
    assert remote.startswith("set -e; mount 'a b'; mkdir -p dmd2_jax; ")
    assert "python3.11 -m venv .venv" in remote
    run = remote.rpartition("; exec ")[2]
    assert shlex.split(run) == ["env", "DMD2_DISTRIBUTED=1", *RUN]


def test_tpu_pod_archive_holds_the_checkout(tmp_path: Path) -> None:
    command = shlex.split(printed("tpu_pod").splitlines()[1])
    archive = tmp_path / "a.tar.gz"
    command[2] = command[2].replace("build/dmd2_jax.tar.gz", shlex.quote(str(archive)))
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout")
    subprocess.run(command, cwd=ROOT, check=True)
    listed = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True)
    assert {"setup.py", "dmd2_jax/main.py", "configs/digits.py"} <= set(listed.stdout.split())


def test_tpu_pod_detached_run_can_be_stopped(tmp_path: Path) -> None:
    options = ("--no_install", "--detach")
    [line] = printed("tpu_pod", *options).splitlines()
    remote = shlex.split(line)[-1].removeprefix("--command=")
    # What the host's shell would do, with a Python that waits to be stopped.
    python = tmp_path / "dmd2_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\ntrap 'echo \"$DMD2_DISTRIBUTED stopped $5\"; exit' TERM\n"
        "echo ready\nfor i in {1..100}; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    subprocess.run(["bash", "-c", remote], cwd=tmp_path, check=True, timeout=5)
    log = tmp_path / "dmd2_jax" / "dmd2.log"

    def wait_for(text: str) -> None:
        for _ in range(100):
            if log.exists() and text in log.read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"got {log.read_text()!r}, expected {text!r}")

    wait_for("ready")
    stop = launch("tpu_pod", "--dry_run", "--stop", "slice", "us-east5-a").stdout
    stop = shlex.split(stop)[-1].removeprefix("--command=")
    subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True, timeout=5)
    wait_for("1 stopped --config.name=a b")


def test_tpu_pod_runs_gcloud(tools: Path) -> None:
    done, notes = told(tools, "tpu_pod", "--no_install", *PLACES["tpu_pod"], *COMMAND)
    assert done.returncode == 0, done.stderr
    [printed_line] = printed("tpu_pod", "--no_install").splitlines()
    assert notes == [[*shlex.split(printed_line), ""]]


def test_queued_resource_prints_its_requests() -> None:
    text = printed("queued_resource", "--spot", "--project=p", "--gcloud=--labels=a=b c")
    create, state, after = (shlex.split(line) for line in text.splitlines())
    resources = ["gcloud", "compute", "tpus", "queued-resources"]
    where = ["--zone=us-east5-a", "--project=p"]
    assert create == [
        *(*resources, "create", "slice", *where),
        "--node-id=slice",
        "--accelerator-type=v5p-128",
        "--runtime-version=v2-alpha-tpuv5",
        "--spot",
        "--labels=a=b c",
    ]
    assert state == [*resources, "describe", "slice", *where, "--format=value(state.state)"]
    assert after[1:] == ["--project=p", "slice", "us-east5-a", "COMMAND", "FLAGS..."]
    assert Path(after[0]).name == "tpu_pod.sh"


def test_queued_resource_asks_waits_and_says_how_to_go_on(tools: Path) -> None:
    (tools / "states").write_text("absent WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    done, notes = told(tools, "queued_resource", "--every=0", *PLACES["queued_resource"])
    assert done.returncode == 0, done.stderr
    assert [note[4] for note in notes] == ["describe", "create", *(["describe"] * 3)]
    assert "slice is WAITING_FOR_RESOURCES" in done.stderr
    assert "tpu_pod.sh slice us-east5-a COMMAND" in done.stdout


def test_queued_resource_uses_one_that_is_there(tools: Path) -> None:
    (tools / "states").write_text("ACTIVE")
    done, notes = told(tools, "queued_resource", *PLACES["queued_resource"])
    assert done.returncode == 0
    assert {note[4] for note in notes} == {"describe"}


def test_queued_resource_says_that_the_request_failed(tools: Path) -> None:
    (tools / "states").write_text("absent FAILED")
    done, _ = told(tools, "queued_resource", "--every=0", *PLACES["queued_resource"])
    assert done.returncode == 1
    assert "slice is FAILED, expected ACTIVE" in done.stderr
    assert "queued-resources delete slice" in done.stderr


@pytest.mark.parametrize("kind", ["v5e-16", "tpu7x-128", "h100"])
def test_queued_resource_refuses_an_unknown_type(kind: str) -> None:
    done = launch("queued_resource", "--dry_run", "slice", "zone", kind)
    assert done.returncode == 2
    assert f"got TYPE={kind}" in done.stderr


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", "tpu-v5-lite-podslice", 1, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v5e:4x8", "tpu-v5-lite-podslice", 8, 4),
        ("v6e:4x4", "tpu-v6e-slice", 4, 4),
        ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("tpu7x:2x2x2", "tpu7x", 2, 4),
    ],
)
def test_gke_asks_for_every_host_of_the_slice(
    topology: str, accelerator: str, hosts: int, chips: int
) -> None:
    job = manifest(topology)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_gke_passes_the_command_on() -> None:
    made = manifest("v5e:2x4", "--chips_per_host=4", "--spot", "--queue=team", "--max_restarts=3")
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert made["spec"]["failurePolicy"] == {"maxRestarts": 3}
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == 2
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    [container] = pod["containers"]
    assert [*container["command"], *container["args"]] == ["python", *RUN[1:]]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment == {"DMD2_DISTRIBUTED": "1", "DMD2_EXIT_WHEN_SAVED": "75"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "files"}


@pytest.mark.parametrize("topology", ["v5e", "v5e:16", "v5p:4x4", "v5e:4x4x4", "v9:2x2", "v6e:0x4"])
def test_gke_refuses_an_unknown_topology(topology: str) -> None:
    done = launch("gke", "--dry_run", "slice", "image", topology, "files", "demo")
    assert done.returncode == 2
    assert f"got TOPOLOGY={topology}, expected CHIP:SHAPE" in done.stderr


def test_gke_refuses_a_part_of_a_host() -> None:
    done = launch("gke", "--chips_per_host=8", "slice", "image", "v5p:2x2x1", "files", "demo")
    assert done.returncode == 2
    assert "got 4 chips with 8 a host" in done.stderr


def test_gke_applies_what_it_prints(tools: Path) -> None:
    words = ("--namespace=team", *PLACES["gke"], *COMMAND)
    done, notes = told(tools, "gke", *words)
    assert done.returncode == 0, done.stderr
    assert notes == [["kubectl", "apply", "--namespace=team", "-f", "-", printed("gke")]]


def job_line(text: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith("srun ")]
    return shlex.split(line)


@pytest.mark.parametrize(
    ("task_per", "tasks", "devices"),
    [("node", 1, ["JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"]), ("gpu", 8, [])],
)
def test_slurm_gives_the_processes_their_gpus(
    task_per: str, tasks: int, devices: list[str]
) -> None:
    text = printed("slurm", f"--task_per={task_per}", "--save_within=90")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, re.M))
    assert asked["nodes"] == "2"
    assert asked["ntasks-per-node"] == str(tasks)
    assert asked["gpus-per-node"] == "8"
    assert asked["signal"] == "TERM@90"
    assert job_line(text) == [
        *("srun", "--kill-on-bad-exit=0", "env", "DMD2_DISTRIBUTED=1", "DMD2_EXIT_WHEN_SAVED=75"),
        *devices,
        *RUN,
    ]


@pytest.mark.parametrize("words", [("two", "8"), ("2", "0")])
def test_slurm_refuses_what_is_no_number(words: tuple[str, str]) -> None:
    done = launch("slurm", *words, "distill")
    assert done.returncode == 2
    assert "expected a number from 1" in done.stderr


def test_slurm_submits_what_it_prints(tools: Path) -> None:
    done, notes = told(tools, "slurm", "--sbatch=--comment=a b", *PLACES["slurm"], *COMMAND)
    assert done.returncode == 0, done.stderr
    [(name, flag, job)] = notes
    assert (name, flag) == ("sbatch", "--comment=a b")
    assert "".join(printed("slurm").splitlines(keepends=True)[1:]) == job


@pytest.mark.parametrize(
    ("code", "told_too", "requeued"),
    [(0, False, False), (1, False, False), (75, False, True), (75, True, False)],
)
def test_slurm_job_requeues_what_was_saved(
    tools: Path, code: int, told_too: bool, requeued: bool
) -> None:
    job = tools / "job"
    job.write_text("".join(printed("slurm").splitlines(keepends=True)[1:]))
    kill = "kill -TERM $PPID\n" if told_too else ""
    for name, body in (("srun", f"{kill}exit {code}\n"), ("scontrol", f'echo "$@" >{tools}/asked')):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    environment = variables(PATH=path, SLURM_JOB_ID="42")
    done = subprocess.run(["bash", job], env=environment, capture_output=True, timeout=20)
    asked = tools / "asked"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 42\n"
    else:
        assert done.returncode == code
