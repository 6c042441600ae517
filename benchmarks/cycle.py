"""Time one distillation cycle, and PyTorch's beside it in the same run.

    python -m benchmarks.cycle --config=benchmarks/reference_point.py
    python -m benchmarks.cycle --config=benchmarks/reference_point.py \
        --config.distill.shared_pass=True --cycles=9

Prints compile time (cold, and again from the persistent cache), the median time of a cycle, peak
memory and FLOPs. With torch installed, the twin in torch_reference.py (official step order) takes
turns with ours, so that whatever else the machine does slows both alike.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from dmd2_jax.config.load import apply_overrides, load_config, parse_overrides
from dmd2_jax.distill import CycleBatch, Samples
from dmd2_jax.recipe.distillation import initial_state, open_distillation, trace
from dmd2_jax.recipe.open import build_family
from dmd2_jax.runtime.platform import prepare_backend
from dmd2_jax.runtime.sharding import make_mesh


def main() -> None:
    """Run the benchmark that the command line asks for and print its figures."""
    overrides, others = parse_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a recipe")
    parser.add_argument("--cycles", type=int, default=7, help="timed cycles of each (>= 5)")
    parser.add_argument("--no_torch", action="store_true", help="time ours alone")
    parser.add_argument("--json", default="", help="write the figures here too")
    arguments = parser.parse_args(others)
    if arguments.cycles < 5:
        parser.error(f"--cycles={arguments.cycles}, expected at least 5 for a median.")
    config = load_config(arguments.config)
    apply_overrides(config, overrides)
    with tempfile.TemporaryDirectory() as cache:
        prepare_backend(compilation_cache=cache)
        figures = run(config, arguments.cycles, with_torch=not arguments.no_torch)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


def run(config: Any, cycles: int, *, with_torch: bool) -> dict[str, Any]:
    """Time `cycles` cycles of ours and, in turns with them, of the PyTorch twin.

    Args:
      config: a recipe; real images are noise, since their values do not change the time.
      cycles: how many of each.
      with_torch: whether to time the twin (if torch can be imported).

    Returns:
      The figures, by name.
    """
    family = build_family(config)
    job = open_distillation(config, family, make_mesh(config.mesh))
    teacher = family.init(jax.random.key(0))
    batch = example_batch(config, family)

    def state() -> Any:
        return initial_state(job.players, job.settings, family, teacher, jax.random.key(1))

    key = jax.random.key(2)
    flops = count_flops(trace(job).jaxpr.jaxpr)
    compiled, cold = compile_seconds(job.cycle, state(), teacher, batch, key)
    jax.clear_caches()
    again = open_distillation(config, family, job.mesh).cycle
    _, warm = compile_seconds(again, state(), teacher, batch, key)

    current = state()

    def ours() -> float:
        nonlocal current
        start = time.perf_counter()
        current, _ = compiled(current, teacher, batch, key)
        jax.block_until_ready(current)
        return time.perf_counter() - start

    contenders: dict[str, Callable[[], float]] = {"ours": ours}
    if with_torch:
        contenders |= torch_contender(config, family, teacher)
    for contender in contenders.values():
        contender()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(cycles):
        for name, contender in contenders.items():
            seconds[name].append(contender())
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    figures = {
        "config": config.name,
        "shared_pass": job.settings.shared_pass,
        "device": jax.devices()[0].device_kind,
        "cpu_count": os.cpu_count(),
        "jax": jax.__version__,
        "parameters": sum(x.size for x in jax.tree.leaves(teacher)),
        "compile_seconds_cold": round(cold, 2),
        "compile_seconds_cached": round(warm, 2),
        "cycle_seconds": round(medians["ours"], 3),
        "cycle_gflop": round(flops / 1e9, 1),
        "gflop_per_second": round(flops / 1e9 / medians["ours"], 1),
        "program_memory_mb": round(program_megabytes(compiled), 1),
        "process_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    for name in medians.keys() - {"ours"}:
        figures[f"{name}_cycle_seconds"] = round(medians[name], 3)
        figures[f"ratio_ours_{name}"] = round(medians["ours"] / medians[name], 3)
    return figures


def example_batch(config: Any, family: Any) -> CycleBatch:
    """Return a batch of noise with random labels, of the shapes that the config asks for."""
    lead = (config.distill.critic_turns, config.distill.batch_size)
    random = np.random.RandomState(0)

    def labels() -> jax.Array:
        return jax.nn.one_hot(random.randint(0, family.num_classes, lead), family.num_classes)

    images = jnp.asarray(random.uniform(-1, 1, (*lead, *family.image_shape)), jnp.float32)
    return CycleBatch(Samples(images, labels()), labels())


def compile_seconds(cycle: Any, *arguments: Any) -> tuple[Any, float]:
    """Return the compiled cycle and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    compiled = cycle.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def program_megabytes(compiled: Any) -> float:
    """Return the memory of arguments, results and temporaries, donated memory once."""
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return (total + memory.temp_size_in_bytes - memory.alias_size_in_bytes) / 1e6


def count_flops(jaxpr: core.Jaxpr) -> float:
    """Count multiplications and additions of matrix products and convolutions.

    A scan's body counts as often as it runs; of branches the most expensive counts.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, outputs = equation.primitive.name, equation.outvars
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[i] for i in contracted])
            total += 2.0 * np.prod(outputs[0].aval.shape) * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            spec = equation.params["dimension_numbers"].rhs_spec
            total += 2.0 * np.prod(outputs[0].aval.shape) * np.prod(kernel) / kernel[spec[0]]
        inner = [count_flops(sub) for sub in _inner_jaxprs(equation)]
        if inner:
            times = equation.params.get("length", 1) if name == "scan" else 1
            total += times * (max(inner) if name == "cond" else sum(inner))
    return float(total)


def _inner_jaxprs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def torch_contender(config: Any, family: Any, teacher: Any) -> dict[str, Callable[[], float]]:
    """Return {"torch": seconds of one cycle of the twin}, or nothing without torch."""
    try:
        from benchmarks import torch_reference
    except ImportError as error:
        print(f"without torch: {error}")
        return {}
    twin = torch_reference.build(config.to_dict(), seed=0)
    return {"torch": lambda: torch_reference.run_cycle(twin)}


if __name__ == "__main__":
    main()
