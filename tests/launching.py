"""Running the launch scripts, and stand-ins for the tools that they call."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMAND = ["distill", "--config=configs/digits.py", "--config.name=a b", '--workdir=it\'s "$HOME"']
RUN = [".venv/bin/python", "-m", "dmd2_jax.commands.main", *COMMAND]

PLACES: dict[str, tuple[str, ...]] = {
    "local": (),
    "local_processes": (),
    "tpu_pod": ("slice", "us-east5-a"),
    "queued_resource": ("slice", "us-east5-a", "v5p-128"),
    "gke": ("slice", "registry/image", "v5e:4x8", "files"),
    "slurm": ("2", "8"),
}
"""Script -> the words before the command."""

WITH_COMMAND = [name for name in PLACES if name != "queued_resource"]
"""The scripts that take a command."""


def variables(**changes: str) -> dict[str, str]:
    """Return the environment without what would change what the scripts do."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "DMD2_"))}
    return {k: v for k, v in kept.items() if k not in ("VENV", "XLA_FLAGS")} | changes


def launch(name: str, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a script."""
    return subprocess.run(
        [ROOT / "launch" / f"{name}.sh", *words],
        capture_output=True,
        text=True,
        env=variables(**changes),
        timeout=400,  # commands take minutes beside busy cores
        check=False,
    )


def printed(name: str, *options: str, **changes: str) -> str:
    """Return what a script would do with COMMAND."""
    command = COMMAND if name in WITH_COMMAND else []
    done = launch(name, "--dry_run", *options, *PLACES[name], *command, **changes)
    assert done.returncode == 0, done.stderr
    return done.stdout


def note_takers(folder: Path) -> Path:
    """Make `gcloud`, `kubectl` and `sbatch` that write down what they are told."""
    note = (
        f"#!{sys.executable}\nimport json, os, sys\n"
        "folder = os.path.dirname(__file__)\n"
        "name = os.path.basename(__file__)\n"
        "text = '' if name == 'gcloud' else sys.stdin.read()\n"
        "with open(folder + '/notes', 'a') as file:\n"
        "    file.write(json.dumps([name, *sys.argv[1:], text]) + '\\n')\n"
        "if 'describe' in sys.argv:\n"
        "    states = open(folder + '/states').read().split()\n"
        "    open(folder + '/states', 'w').write(' '.join(states[1:] or states))\n"
        "    if states[0] == 'absent': sys.exit('NOT_FOUND')\n"
        "    print(states[0])\n"
    )
    for name in ("gcloud", "kubectl", "sbatch"):
        (folder / name).write_text(note)
        (folder / name).chmod(0o755)
    return folder


def told(tools: Path, name: str, *words: str) -> tuple[subprocess.CompletedProcess, list[list]]:
    """Run a script with tools that take notes; return these too: name, words, standard input."""
    done = launch(name, *words, PATH=f"{tools}:{os.environ['PATH']}")
    notes = tools / "notes"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return done, [json.loads(line) for line in lines]
