"""A cycle's memory from the compiler, without its machine code.

A TPU program's memory is final long before its machine code is there: ImageNet-64's after four
minutes, the code not after 26. The compiler writes both, the buffers and the optimised program, to
files as it goes (XLA's `--xla_dump_to`), so it runs in a process of its own that is ended as soon
as they are complete. What comes next can take more memory than all before: SDXL's 13 GB became more
than 21.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from dmd2_jax.config.load import from_plain, plain
from dmd2_jax.plan.cycle import machine, open_cycle
from dmd2_jax.recipe.distillation import trace
from dmd2_jax.runtime.whole_file import scratch_folder

__all__ = ["Buffers", "assign_buffers", "is_whole"]

_CONFIG, _REFUSAL, _SAID = "config.json", "refusal.txt", "output.txt"
_REPORT, _PROGRAM = "-memory-usage-report", ""  # the ends of the two files' names
_POLL = 0.5  # seconds
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
      config: the whole config, one that `open_cycle` accepts.
      name: "local", or a TPU slice such as "v5e:4x4".

    Raises:
      ChildProcessError: if the compiler fails in another way than by lack of memory.
    """
    with scratch_folder("plan") as place:
        (place / _CONFIG).write_text(json.dumps(plain(config)))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={place}".strip()
        with (place / _SAID).open("w") as said:
            compiler = subprocess.Popen(
                [sys.executable, "-m", "dmd2_jax.plan.buffers", name, str(place)],
                env=os.environ | _CACHE | {"XLA_FLAGS": flags},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
            try:
                sizes: tuple[int, ...] = ()
                while compiler.poll() is None:
                    time.sleep(_POLL)
                    before, sizes = sizes, _sizes(place)
                    if sizes and sizes == before and is_whole(_dumped(place, _PROGRAM)[0]):
                        break
            finally:
                compiler.kill()
                compiler.wait()
        if (place / _REFUSAL).exists():
            return Buffers(0, 0, "", (place / _REFUSAL).read_text())
        return _read(place, compiler.returncode)


def is_whole(file: Path) -> bool:
    """Return whether a program's text is all there: its entry comes last and has its end."""
    text = file.read_text()
    last_but_one = text.rfind("\n}\n\n", 0, len(text) - 1)
    return text.endswith("\n}\n\n") and text.rfind("\nENTRY ") > last_but_one


def _dumped(folder: Path, what: str) -> list[Path]:
    return sorted(folder.glob(f"*jit_cycle*after_optimizations{what}.txt"))


def _sizes(folder: Path) -> tuple[int, ...]:
    """Return the sizes of what `_read` needs; nothing as long as one of them is missing."""
    files = _dumped(folder, _REPORT)[:1] + _dumped(folder, _PROGRAM)[:1]
    return tuple(file.stat().st_size for file in files) if len(files) == 2 else ()


def _read(folder: Path, code: int) -> Buffers:
    reports, programs = _dumped(folder, _REPORT), _dumped(folder, _PROGRAM)
    if not reports or not programs or not is_whole(programs[0]):
        raise ChildProcessError(
            f"the compiler ended (exit code {code}; -9: this machine's memory was not enough for "
            "it) before the cycle's memory and program were written, expected both; give it more "
            "memory or try until=program. Its last words:\n"
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
        trace(open_cycle(config, machine(name)[1])).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        Path(folder, _REFUSAL).write_text(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
