"""FLOPs, bytes and collectives of programs, against hand counts and the compiler's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmd2_jax.runtime.program_costs import Collective, jaxpr_flops, read_program


def flops(f, *arguments) -> float:
    return jaxpr_flops(jax.make_jaxpr(f)(*arguments))


def compiler_flops(f, *arguments) -> float:
    return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


def looped(x, w):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]


def test_jaxpr_flops_counts_a_loop_as_often_as_it_runs() -> None:
    x, w = jnp.ones((32, 64)), jnp.ones((64, 64))
    assert flops(looped, x, w) == 7 * (2 * 32 * 64 * 64 + 32 * 64)


def test_jaxpr_flops_leaves_out_what_nothing_depends_on() -> None:
    # The gradient of `a` alone: the one of `b`, and in the loop the unused product, are dead.
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))

    def loss(a, b):
        def body(x, _):
            return product(x, b), None

        return jax.lax.scan(body, a, length=3)[0].sum()

    a, b = np.ones((4, 8), np.float32), np.ones((8, 8), np.float32)
    one = 2 * 4 * 8 * 8
    counted = flops(lambda a: jax.value_and_grad(loss)(a, b), a)
    assert 3 * 2 * one <= counted < 3 * 3 * one  # forward and back, without b's own


def test_jaxpr_flops_counts_inside_jit_remat_and_cond() -> None:
    x = jnp.ones((8, 8))
    one = 2 * 8**3

    def f(x):
        x = jax.jit(lambda x: x @ x)(x)
        x = jax.checkpoint(lambda x: x @ x)(x)
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert flops(f, x) == pytest.approx(4 * one, rel=0.02)


@pytest.mark.parametrize("stride", [1, 2])
def test_jaxpr_flops_of_convolutions_equals_the_compilers(stride: int) -> None:
    x, kernel = jnp.ones((2, 9, 9, 4)), jnp.ones((3, 3, 4, 8))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def gradients(x, kernel):
        return jax.grad(lambda x, k: convolve(x, k).sum() ** 2, (0, 1))(x, kernel)

    assert flops(convolve, x, kernel) == compiler_flops(convolve, x, kernel)
    assert flops(gradients, x, kernel) == pytest.approx(
        compiler_flops(gradients, x, kernel), rel=1e-3
    )


def test_read_program_counts_a_loops_bytes_as_often_as_it_runs() -> None:
    x, w = jnp.ones((32, 64)), jnp.ones((64, 64))
    program = jax.jit(looped).lower(x, w).compile()
    once = program.cost_analysis()["bytes accessed"]
    assert 5 * once < read_program(program.as_text()).num_bytes < 7.5 * once


def test_read_program_counts_collectives_in_loops() -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())

    def f(x, w):
        def body(w, _):
            return w - jax.lax.with_sharding_constraint((x * (x @ w)[:, None]).sum(0), whole), None

        return jax.lax.scan(body, w, None, length=5)[0]

    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((64, 128), (128,))]
    program = jax.jit(f, in_shardings=(split, whole), out_shardings=whole).lower(*shapes).compile()
    costs = read_program(program.as_text())
    assert costs.collectives == {"all-reduce": Collective(5, 5 * 128 * 4)}


TPU_TEXT = """HloModule jit_f, is_scheduled=true

%body.1 (p: (s32[], f32[128])) -> (s32[], f32[128]) {
  %p = (s32[]{:T(128)}, f32[128]{0:T(128)S(1)}) parameter(0)
  %g.1 = f32[128]{0:T(128)S(1)} get-tuple-element(%p), index=1
  %g.0 = s32[]{:T(128)} get-tuple-element(%p), index=0
  %all-reduce.1 = f32[128]{0:T(128)S(1)} all-reduce(%g.1), channel_id=1, to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, f32[128]{0:T(128)S(1)}) tuple(%g.0, %all-reduce.1)
}

%cond.1 (q: (s32[], f32[128])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(6)
  %q = (s32[]{:T(128)}, f32[128]{0:T(128)S(1)}) parameter(0)
  %h.0 = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%h.0, %constant.9), direction=LT
}

ENTRY %main (a: f32[128]) -> f32[128] {
  %a = f32[128]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[128]{0:T(128)}) tuple(%zero, %a)
  %while.1 = (s32[]{:T(128)}, f32[128]{0:T(128)}) while(%start), condition=%cond.1, body=%body.1
  ROOT %out = f32[128]{0:T(128)} get-tuple-element(%while.1), index=1
}
"""


def test_read_program_finds_the_trip_count_in_the_condition() -> None:
    # TPU's compiler notes no trip count; its types hold tiles in parentheses.
    costs = read_program(TPU_TEXT)
    assert costs.collectives == {"all-reduce": Collective(6, 6 * 512)}


PREFETCHED = """
ENTRY %main (p0: f32[8,128], p1: f32[4,128]) -> f32[8,128] {
  %p0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %p1 = f32[4,128]{1,0:T(4,128)} parameter(1)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p0)
  %done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%start)
  %near = f32[8,128]{1,0:T(8,128)S(1)} fusion(%done, %done), kind=kLoop, calls=%fused
  %gather = (f32[4,128]{1,0}, f32[8,128]{1,0}) all-gather-start(%p1), dimensions={0}
  %gathered = f32[8,128]{1,0} all-gather-done(%gather)
  ROOT %far = f32[8,128]{1,0:T(8,128)} fusion(%near, %gathered), kind=kLoop, calls=%fused
}
"""


def test_read_program_counts_what_a_tpu_moves_in_its_main_memory_once() -> None:
    costs = read_program(PREFETCHED)
    whole = 4 * 8 * 128
    # The prefetch reads p0, and writes where it costs nothing; the gather reads p1 and writes; the
    # last fusion reads what was gathered and writes.
    assert costs.num_bytes == whole + (whole / 2 + whole) + 2 * whole
    assert costs.collectives == {"all-gather": Collective(1, whole)}


def test_read_program_refuses_other_text() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("module @jit_f {}")
