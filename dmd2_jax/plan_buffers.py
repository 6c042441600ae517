"""A cycle's memory from the compiler, without its machine code.

A TPU program's memory is final long before its machine code is there: ImageNet-64's after four
minutes, the code not after 26. The compiler writes both, the buffers and the optimised program, to
files as it goes (XLA's `--xla_dump_to`), so it runs in a process of its own that is ended as soon
as they are complete.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dmd2_jax.config import from_plain, plain
from dmd2_jax.plan_cycle import machine, trace_cycle

__all__ = ["Buffers", "assign_buffers"]

_CONFIG, _REFUSAL, _SAID = "config.json", "refusal.txt", "output.txt"
_LAST = "*jit_cycle*after_optimizations_after_buffer_assignment.txt"  # written when all else is
_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # a program that is found there is not compiled


class Buffers(NamedTuple):
    """What the compiler has decided when only the machine code is missing.

    Attributes:
      num_bytes: of a device's memory, for everything together; 0 where it was refused.
      host_bytes: of the host's memory, for a device.
      text: the optimised program of one device; "" where it was refused.
      refusal: why the program does not fit; "" if it does.
    """

    num_bytes: int
    host_bytes: int
    text: str
    refusal: str


def assign_buffers(config: ConfigDict, name: str) -> Buffers:
    """Compile a recipe's cycle for a machine as far as its memory is known.

    Args:
      config: the whole config, one that `trace_cycle` accepts.
      name: "local", or a TPU slice such as "v5e:4x4".

    Raises:
      ChildProcessError: if the compiler fails in another way than by lack of memory.
    """
    with tempfile.TemporaryDirectory(prefix="dmd2_plan_") as folder:
        place = Path(folder)
        (place / _CONFIG).write_text(json.dumps(plain(config)))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}".strip()
        with (place / _SAID).open("w") as said:
            compiler = subprocess.Popen(
                [sys.executable, "-m", "dmd2_jax.plan_buffers", name, folder],
                env=os.environ | _CACHE | {"XLA_FLAGS": flags},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
            try:
                while compiler.poll() is None and not list(place.glob(_LAST)):
                    time.sleep(0.1)
            finally:
                compiler.kill()
                compiler.wait()
        if (place / _REFUSAL).exists():
            return Buffers(0, 0, "", (place / _REFUSAL).read_text())
        return _read(place)


def _dumped(folder: Path, what: str) -> list[Path]:
    return sorted(folder.glob(f"*jit_cycle*after_optimizations{what and '-'}{what}.txt"))


def _read(folder: Path) -> Buffers:
    reports, programs = _dumped(folder, "memory-usage-report"), _dumped(folder, "")
    if not reports or not programs:
        raise ChildProcessError(
            "the compiler ended without saying what memory the cycle takes, expected it in a file "
            "*memory-usage-report.txt; try --until=program. Its last words:\n"
            + "\n".join((folder / _SAID).read_text().splitlines()[-20:])
        )
    report = reports[0].read_text()
    return Buffers(_total(report, "default"), _total(report, "host"), programs[0].read_text(), "")


def _total(report: str, space: str) -> int:
    found = re.search(rf"^Memory Space: {space} \(color=\d+\)\nTotal bytes: (\d+)", report, re.M)
    return int(found[1]) if found else 0


def main(name: str, folder: str) -> None:
    """Compile the cycle of the config in a folder; XLA writes there."""
    config = from_plain(json.loads(Path(folder, _CONFIG).read_text()))
    try:
        trace_cycle(config, machine(name)[1]).traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        Path(folder, _REFUSAL).write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
