"""Memory traffic of an attention layer on a TPU that need not be there: the kernel and the formula.

    python -m benchmarks.attention_traffic --topology=v6e:1x1
    python -m benchmarks.attention_traffic --shapes=35x256x256x9x64,2x4096x4096x8x40

A shape is samples a chip, queries, keys, heads, channels a head. The layer is three linear maps,
attention and a fourth map, in bfloat16, compiled ahead of time (needs libtpu, no TPU), alone and
with its gradients. Bytes are what the program's instructions read and write, memory is what it
holds beside its arguments; both of one chip.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dmd2_jax.networks.attention import attention
from dmd2_jax.plan.chips import topology
from dmd2_jax.plan.program_costs import read_program
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.runtime.sharding import batch_sharding, make_mesh, replicated
from dmd2_jax.typing import Array

Shape = tuple[int, int, int, int, int]


class Row(NamedTuple):
    """One compiled layer.

    Attributes:
      fused: whether it has a kernel.
      num_bytes: read and written.
      temporaries: bytes held beside arguments and results.
    """

    fused: bool
    num_bytes: int
    temporaries: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v6e:1x1", help="a TPU slice")
    parser.add_argument("--shapes", default="35x1024x1024x6x64", help="B x Q x K x HEADS x D, ...")
    options = parser.parse_args()
    _, devices = topology(options.topology)
    table = [["shape", "program", "attention", "GB moved", "GB held"]]
    for text in options.shapes.split(","):
        shape: Any = tuple(int(size) for size in text.split("x"))
        for gradients in (False, True):
            for kernel in (False, True):
                row = compiled_layer(devices, shape, gradients=gradients, kernel=kernel)
                program = "forward and gradients" if gradients else "forward"
                fused = "kernel" if row.fused else "formula"
                sizes = [f"{size / 1e9:.3f}" for size in row[1:]]
                table.append([text, program, fused, *sizes])
    print(aligned(table))


def compiled_layer(
    devices: Sequence[jax.Device], shape: Shape, *, gradients: bool, kernel: bool
) -> Row:
    """Compile a layer for devices, its batch split over them; with a kernel if they have one."""
    mesh = make_mesh({"data": -1}, devices)
    b, queries, keys, heads, size = shape
    width = heads * size

    def layer(maps: Array, x: Array, source: Array) -> Array:
        q, k, v = (
            jnp.einsum("bnc,cd->bnd", tokens, maps[i]).reshape(*tokens.shape[:2], heads, size)
            for i, tokens in enumerate((x, source, source))
        )
        return jnp.einsum("bnc,cd->bnd", attention(q, k, v).reshape(x.shape), maps[3])

    def on_mesh(*arrays: Array) -> Array:
        if not kernel:
            return layer(*arrays)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return layer(*arrays)

    def with_gradients(maps: Array, x: Array, source: Array, g: Array) -> Any:
        return jax.vjp(on_mesh, maps, x, source)[1](g)

    def array(place: jax.sharding.Sharding, *sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=place)

    split = batch_sharding(mesh)
    x, source = (array(split, b * mesh.size, tokens, width) for tokens in (queries, keys))
    given = [array(replicated(mesh), 4, width, width), x, source]
    function: Callable[..., Any] = with_gradients if gradients else on_mesh
    traced = jax.jit(function).trace(*given, *[x] * gradients)
    program = traced.lower().compile()
    return Row(
        "pallas_call" in str(traced.jaxpr),
        read_program(program.as_text()).num_bytes,
        program.memory_analysis().temp_size_in_bytes,
    )


if __name__ == "__main__":
    main()
