"""A recipe that compiles and runs in seconds, and the runs made from it, made once.

It is a config file as those in configs/: `--config=tests/tiny.py`. Its network is one block of
tokens, which compiles in half the time of the U-Net of tests/tiny_unet.py.
"""

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from ml_collections import ConfigDict

from dmd2_jax.config import defaults

RECIPE = Path(__file__).resolve()


def get_config() -> ConfigDict:
    """Return the config."""
    config = shared_config("sit")
    config.model.width = 64
    config.model.depth = 1
    config.model.feature_blocks = (0,)
    config.teacher.objective = "flow"
    config.distill.denoising_weight = "flow"
    config.distill.student_times = (1.0,)
    return config


def shared_config(family: str) -> ConfigDict:
    """Return what the recipes of the tests share, with the defaults of a family's network."""
    config = defaults.get_config(family)
    config.name = "tiny"
    config.teacher.steps = 6
    config.teacher.batch_size = 8
    config.teacher.warmup = 2
    config.teacher.sampler_steps = 2
    config.distill.cycles = 4
    config.distill.batch_size = 8
    config.distill.critic_turns = 2
    config.distill.gan_head_channels = 8
    config.distill.regression_pairs = 20
    config.optim.generator_lr = 1e-4
    config.optim.critic_lr = 1e-4
    config.optim.warmup = 0
    config.optim.ema_decays = (0.9,)
    config.mesh.data = 1
    config.log.every = 1
    config.log.grid_every = 4
    config.log.teacher_grid_every = 4
    config.log.checkpoint_every = 2
    config.evaluate.num_samples = 60
    config.evaluate.batch_size = 30
    return config


def dmd2(*words: str | Path) -> int:
    """Run the command in this process; return its exit code."""
    from dmd2_jax.commands.main import main
    from tests.classifiers import fitted_once

    # The tests' own process has its backend already.
    with mock.patch("dmd2_jax.runtime.platform.prepare_backend"), fitted_once():
        try:
            return main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            return int(stop.code or 0)


def refused(capsys: Any, *words: str | Path, code: int = 2) -> str:
    """Run a command that must fail, and return its message."""
    capsys.readouterr()
    assert dmd2(*words) == code
    message = capsys.readouterr().err
    assert any(line.startswith(("dmd2: ", "usage: ")) for line in message.splitlines())
    assert "Traceback" not in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder`, to see that nothing was written."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def unnamed(content: bytes) -> bytes:
    """Return a file's bytes; of a run's weights but its random name, and the seal that is over it.

    What two runs of one config write differs in nothing else.
    """
    length = int.from_bytes(content[:8], "little")
    if content[8:9] != b"{" or length > len(content):
        return content  # no .safetensors
    header = json.loads(content[8 : 8 + length])
    notes = header.get("__metadata__", {})
    if "dmd2_of" in notes:
        notes["dmd2_of"] = {**json.loads(notes["dmd2_of"]), "run": ""}
        notes["dmd2_seal"] = ""
    return json.dumps(header).encode() + content[8 + length :]


def results(workdir: Path) -> dict[str, bytes]:
    """Return the files that must not depend on what a run went through; see `unnamed`."""
    files = [*workdir.glob("*.safetensors"), workdir / "metrics.jsonl"]
    return {file.name: unnamed(file.read_bytes()) for file in files if file.exists()}


def scratch() -> Path:
    """Return a new folder that goes when the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="dmd2_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def cache_folder() -> Path:
    """Return the folder of compiled programs that all tests share; conftest.py sets it."""
    return Path(os.environ["DMD2_TESTS_CACHE"])


@functools.cache
def teacher_run() -> Path:
    """Return the run folder of a trained teacher; do not change it."""
    workdir = scratch() / "teacher"
    assert dmd2("train-teacher", f"--config={RECIPE}", f"--workdir={workdir}") == 0
    return workdir


def distill_words(workdir: Path, *more: str) -> list[str]:
    """Return the command line that distils that teacher into `workdir`."""
    words = ["distill", f"--config={RECIPE}", f"--workdir={workdir}"]
    return [*words, f"--config.teacher.weights={teacher_run()}", *more]


@functools.cache
def student_run() -> Path:
    """Return the run folder of a distilled student; do not change it."""
    workdir = scratch() / "student"
    assert dmd2(*distill_words(workdir)) == 0
    return workdir
