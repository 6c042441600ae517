"""What every test shares: eight CPU devices, compiled programs, checked array shapes, `--golden`.

Environment variables and the import hook must be in place before jax and the package are
imported, so they are set while pytest reads this file.
"""

import gc
import os
import shutil
from pathlib import Path

import pytest

from tests.compiling import cache_of_this_machine, flags
from tests.order import longest_first

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 {flags()} {os.environ.get('XLA_FLAGS', '')}".strip()
)

# The commands that tests start would each compile the package's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Compiled programs: all workers share them, and the commands that tests start; they stay for the
# next run. JAX's own keys hold the flags.
os.environ["DMD2_TESTS_CACHE"] = os.environ.get("DMD2_TESTS_CACHE") or str(cache_of_this_machine())
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["DMD2_TESTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from jaxtyping import install_import_hook

# The floors whose signatures are the specification; networks are checked by their golden tests.
install_import_hook(
    ["dmd2_jax.diffusion", "dmd2_jax.losses", "dmd2_jax.distill"], "beartype.beartype"
)

# Tracing makes many objects that live on; looking for dead ones among them takes a sixth of it.
gc.set_threshold(100_000, 50, 50)

_LARGEST_CACHE = 2**31  # bytes; then it begins anew


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the folder of compiled programs; the process that has no other above it clears it."""
    folder = Path(os.environ["DMD2_TESTS_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    is_first = not hasattr(session.config, "workerinput")
    if is_first and sum(it.stat().st_size for it in folder.iterdir()) > _LARGEST_CACHE:
        shutil.rmtree(folder)
        folder.mkdir()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what imports have made out of every later search for dead objects."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest."""
    items[:] = longest_first(items, lambda item: item.path)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--golden DIR`: the recorded vectors to conform to."""
    parser.addoption(
        "--golden",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of recorded vectors in the format of tests/golden/README.md",
    )
