"""What every test shares: eight CPU devices, checked array shapes, the `--golden` option.

Environment variables and the import hook must be in place before jax and the package are
imported, so they are set while pytest reads this file.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is most of what the suite does, and machine code that is not optimised takes a quarter
# less of it.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
).strip()

from jaxtyping import install_import_hook

# The floors whose signatures are the specification; networks are checked by their golden tests.
install_import_hook(
    ["dmd2_jax.diffusion", "dmd2_jax.losses", "dmd2_jax.distill"], "beartype.beartype"
)


# Compiled programs, made once for all workers; they inherit the variable.
_OWN = "DMD2_TESTS_CACHE" not in os.environ
if _OWN:
    os.environ["DMD2_TESTS_CACHE"] = tempfile.mkdtemp(prefix="dmd2_tests_cache_")


def pytest_unconfigure() -> None:
    """Remove the compiled programs, in the process that made their folder."""
    if _OWN:
        shutil.rmtree(os.environ["DMD2_TESTS_CACHE"], ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden DIR`: the recorded vectors to conform to."""
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of recorded vectors in the format of tests/golden/README.md",
    )
