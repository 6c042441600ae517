"""What the tests ask of XLA, whose programs are most of their time."""

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path


def cache_of_this_machine() -> Path:
    """Return a folder of compiled programs for this jaxlib and kind of processor, in the checkout.

    JAX's own keys hold the program and XLA's flags, but not the processor.
    """
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = f"{metadata.version('jaxlib')} {platform.platform()} {features}"
    name = hashlib.sha256(kind.encode()).hexdigest()[:16]
    return Path(__file__).resolve().parents[1] / ".cache" / "compiled_tests" / name


@functools.cache
def fast_to_compile() -> dict[str, bool]:
    """Return compile options with which the largest programs take a fifth less time.

    None where this jaxlib does not have them: 0.12 has no other emitters to fall back to.
    """
    return supported({"xla_cpu_use_fusion_emitters": False})


def supported(options: dict[str, bool]) -> dict[str, bool]:
    """Return the options that XLA knows."""
    import jax  # after conftest.py has set what jax reads as it is imported

    def knows(name: str) -> bool:
        try:
            jax.jit(lambda x: x).lower(1.0).compile(compiler_options={name: options[name]})
        except Exception as error:
            if "No such compile option" not in str(error):
                raise
            return False
        return True

    return {name: options[name] for name in options if knows(name)}
