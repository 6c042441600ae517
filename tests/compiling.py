"""What the tests ask of XLA, whose programs are most of their time."""

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


def flags() -> str:
    """Return what XLA_FLAGS has in the tests, and in commands that they start.

    They compile more than they run. Machine code that is not optimised takes a quarter less time
    to make, and without the fusion emitters the largest programs take a third less of the rest.
    All kernels of a program in one module, where XLA makes 32 to share among cores that are busy
    here anyway, save a tenth of that.
    XLA ends a process that has a flag which it does not know: jaxlib 0.12 has no other emitters.
    """
    known = metadata.version("jaxlib").startswith("0.10.")
    more = ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    return " ".join(["--xla_backend_optimization_level=0", *(more if known else [])])
