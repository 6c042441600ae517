"""FLOPs, bytes and collectives of programs, against hand counts and the compiler's own."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dmd2_jax.networks import fused_attention
from dmd2_jax.networks.attention import attention
from dmd2_jax.plan.jaxpr_flops import jaxpr_flops
from dmd2_jax.plan.program_costs import Collective, read_program
from dmd2_jax.runtime.sharding import make_mesh


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


def test_jaxpr_flops_counts_attentions_kernel_on_all_devices(monkeypatch) -> None:
    monkeypatch.setattr(fused_attention, "_TPUS", frozenset({"cpu"}))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    x = jax.ShapeDtypeStruct((4, 1024, 2, 64), jnp.bfloat16)

    def f(q, k, v, g):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            out, pull = jax.vjp(attention, q, k, v)
        return out, *pull(g)

    program = jax.make_jaxpr(f)(x, x, x, x)
    assert "pallas_call" in str(program)
    product = 2 * 4 * 2 * 1024 * 1024 * 64
    # Two products forward and again for the gradient, whose own are five; the softmax is the rest.
    assert jaxpr_flops(program) == pytest.approx(9 * product, rel=0.05)
    assert jaxpr_flops(program, again=False) == pytest.approx(7 * product, rel=0.05)
    assert jaxpr_flops(program) > 9 * product


def test_jaxpr_flops_counts_forward_mode() -> None:
    x = jnp.ones((1, 64, 1, 32))
    product = 2 * 64 * 64 * 32
    counted = flops(lambda x: jax.jvp(lambda x: attention(x, x, x), (x,), (x,)), x)
    assert counted == pytest.approx(2 * product + 6 * product, rel=0.25)


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


def test_read_program_counts_a_branch_of_a_loop_as_often_as_the_loop_runs() -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())

    def f(x, w, flags):
        def reduce(w):
            return w - jax.lax.with_sharding_constraint((x * (x @ w)[:, None]).sum(0), whole)

        def body(w, flag):
            return jax.lax.cond(flag, reduce, lambda w: w, w), None

        return jax.lax.scan(body, w, flags)[0]

    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((64, 128), (128,))]
    shapes.append(jax.ShapeDtypeStruct((5,), bool))
    places = (split, whole, whole)
    program = jax.jit(f, in_shardings=places, out_shardings=whole).lower(*shapes).compile()
    text = program.as_text()
    assert "conditional(" in text  # the compiler has not made a select of it
    costs = read_program(text)
    assert costs.collectives == {"all-reduce": Collective(5, 5 * 128 * 4)}
    assert costs.num_bytes > 5 * 4 * (64 // 8) * 128  # each run reads this device's rows of x


BRANCHES = """
%nothing (p: f32[128]) -> f32[128] {
  ROOT %p = f32[128]{0} parameter(0)
}

%small (q: f32[128]) -> f32[128] {
  %q = f32[128]{0} parameter(0)
  ROOT %sum.1 = f32[128]{0} all-reduce(%q), channel_id=1, to_apply=%add
}

%large (r: f32[128]) -> f32[128] {
  %r = f32[128]{0} parameter(0)
  %twice = f32[128]{0} add(%r, %r)
  %sum.2 = f32[128]{0} all-reduce(%twice), channel_id=2, to_apply=%add
  ROOT %all = f32[128]{0} all-to-all(%sum.2), channel_id=3
}

ENTRY %main (p0: f32[128], p1: s32[]) -> f32[128] {
  %p0 = f32[128]{0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %out = f32[128]{0} conditional(%p1, %p0, %p0), SIDES, metadata={op_name="cond"}
}
"""


@pytest.mark.parametrize(
    "sides",
    [
        "branch_computations={%nothing, %large, %small}",
        "branch_computations={%large}",
        "true_computation=%large, false_computation=%small",
        "true_computation=%nothing, false_computation=%large",
    ],
)
def test_read_program_counts_the_largest_side_of_a_branch(sides: str) -> None:
    costs = read_program(BRANCHES.replace("SIDES", sides))
    assert costs.num_bytes == 512 * (3 + 2 + 2)
    assert costs.collectives == {"all-reduce": Collective(1, 512), "all-to-all": Collective(1, 512)}


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


# From v5e:2x4, shortened: the gradient's reduce-scatter.
SCATTERED = """
%all-reduce-scatter.1 (input.1: f32[2048,2048]) -> f32[256,2048] {
  %input.1 = f32[2048,2048]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.4 = f32[2048,2048]{1,0:T(8,128)} all-reduce(%input.1), channel_id=5, to_apply=%add
  %partition-id.2 = u32[] partition-id()
  %constant.25 = u32[] constant(0)
  ROOT %slice.9 = f32[256,2048]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.4, %partition-id.2)
}

ENTRY %main (g: f32[2048,2048]) -> f32[256,2048] {
  %g = f32[2048,2048]{1,0:T(8,128)} parameter(0)
  ROOT %fusion.1 = f32[256,2048]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_read_program_counts_a_fused_reduce_scatter_by_what_it_reduces() -> None:
    costs = read_program(SCATTERED)
    assert costs.collectives == {"reduce-scatter": Collective(1, 4 * 2048 * 2048)}
    assert costs.num_bytes == 4 * (2048 + 256) * 2048


# As above, of two arrays at once, for two networks: libtpu gives both the same channel.
SCATTERED_TOGETHER = """
%all-reduce-scatter.38 (a: f32[8,64], b: f32[128]) -> (f32[2,64], f32[32]) {
  %a = f32[8,64]{1,0:T(8,128)S(1)} parameter(0)
  %b = f32[128]{0:T(128)S(1)} parameter(1)
  %sum.443 = (f32[8,64]{1,0}, f32[128]{0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %get.27 = f32[8,64]{1,0} get-tuple-element(%sum.443), index=0
  %partition-id.96 = u32[] partition-id()
  %slice.729 = f32[2,64]{1,0} dynamic-slice(%get.27, %partition-id.96, %partition-id.96)
  %get.28 = f32[128]{0} get-tuple-element(%sum.443), index=1
  %slice.730 = f32[32]{0} dynamic-slice(%get.28, %partition-id.96)
  ROOT %both = (f32[2,64]{1,0}, f32[32]{0}) tuple(%slice.729, %slice.730)
}

ENTRY %main (c: f32[8,64], d: f32[128]) -> (f32[2,64], f32[32]) {
  %c = f32[8,64]{1,0} parameter(0)
  %d = f32[128]{0} parameter(1)
  %first = (f32[2,64]{1,0}, f32[32]{0}) fusion(%c, %d), calls=%all-reduce-scatter.38
  ROOT %second = (f32[2,64]{1,0}, f32[32]{0}) fusion(%c, %d), calls=%all-reduce-scatter.38
}
"""


def test_read_program_counts_each_reduce_scatter_of_several_arrays() -> None:
    costs = read_program(SCATTERED_TOGETHER)
    assert costs.collectives == {"reduce-scatter": Collective(2, 2 * 4 * (8 * 64 + 128))}


def test_read_program_counts_a_fused_all_reduce() -> None:
    text = SCATTERED.replace("dynamic-slice(%all-reduce.4", "add(%all-reduce.4")
    assert read_program(text).collectives == {"all-reduce": Collective(1, 4 * 2048 * 2048)}


def test_read_program_counts_a_reduce_scatter_that_is_not_fused_alike() -> None:
    done = """
ENTRY %main (g: f32[2048,2048]) -> f32[256,2048] {
  %g = f32[2048,2048]{1,0} parameter(0)
  ROOT %out = f32[256,2048]{1,0} reduce-scatter(%g), channel_id=5, dimensions={0}, to_apply=%add
}
"""
    start = done.replace("ROOT %out = f32[256,2048]{1,0} reduce-scatter", START)
    for text in (done, start):
        costs = read_program(text)
        assert costs.collectives == {"reduce-scatter": Collective(1, 4 * 2048 * 2048)}
        assert costs.num_bytes == 4 * (2048 + 256) * 2048


START = "%s = ((f32[2048,2048]{1,0}), f32[256,2048]{1,0}) reduce-scatter-start"


# From v5e:2x4, shortened: one all-gather that runs beside two products, and one by itself.
BESIDE = """
%begin (a: bf16[256,2048]) -> (bf16[256,2048], bf16[2048,2048], u32[]) {
  %a = bf16[256,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %gather.16 = bf16[2048,2048]{1,0:T(8,128)(2,1)} all-gather(%a), channel_id=3, dimensions={0}
  ROOT %b = (bf16[256,2048]{1,0}, bf16[2048,2048]{1,0}, u32[]) custom-call(%a, %gather.16)
}

%beside.22 (c: bf16[256,2048], d: f32[128,2048]) -> (f32[128,2048], bf16[2048,2048]) {
  %c = bf16[256,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %d = f32[128,2048]{1,0:T(8,128)} parameter(1)
  %product.21 = f32[128,2048]{1,0:T(8,128)} convolution(%d, %d), dim_labels=bf_io->bf
  %gather.18 = bf16[2048,2048]{1,0:T(8,128)(2,1)} all-gather(%c), channel_id=3, dimensions={0}
  ROOT %e = (f32[128,2048]{1,0}, bf16[2048,2048]{1,0}) tuple(%product.21, %gather.18)
}

%end (f: bf16[256,2048], g: bf16[2048,2048]) -> bf16[2048,2048] {
  %f = bf16[256,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %g = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %gather.22 = bf16[2048,2048]{1,0:T(8,128)(2,1)} all-gather(%f), channel_id=3, dimensions={0}
  ROOT %h = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} custom-call(%f, %g, %gather.22)
}

%body (t: (bf16[256,2048], f32[128,2048])) -> (bf16[256,2048], f32[128,2048]) {
  %t = (bf16[256,2048]{1,0}, f32[128,2048]{1,0}) parameter(0)
  %x = bf16[256,2048]{1,0} get-tuple-element(%t), index=0
  %y = f32[128,2048]{1,0} get-tuple-element(%t), index=1
  %start = (bf16[256,2048]{1,0}, bf16[2048,2048]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %fusion.22 = (f32[128,2048]{1,0}, bf16[2048,2048]{1,0}) fusion(%x, %y), calls=%beside.22
  %fusion.27 = (f32[128,2048]{1,0}, bf16[2048,2048]{1,0}) fusion(%x, %y), calls=%beside.22
  %w = bf16[2048,2048]{1,0} get-tuple-element(%fusion.27), index=1
  %done = bf16[2048,2048]{1,0} fusion(%x, %w), kind=kCustom, calls=%end
  %gather.24 = bf16[2048,2048]{1,0} all-gather(%x), channel_id=2, dimensions={0}
  ROOT %u = (bf16[256,2048]{1,0}, f32[128,2048]{1,0}) tuple(%x, %y)
}

%cond (v: (bf16[256,2048], f32[128,2048])) -> pred[] {
  %constant.9 = s32[] constant(7)
}

ENTRY %main (t0: (bf16[256,2048], f32[128,2048])) -> (bf16[256,2048], f32[128,2048]) {
  %t0 = (bf16[256,2048]{1,0}, f32[128,2048]{1,0}) parameter(0)
  ROOT %l = (bf16[256,2048]{1,0}, f32[128,2048]{1,0}) while(%t0), condition=%cond, body=%body
}
"""


def test_read_program_counts_a_collective_in_several_fusions_once() -> None:
    costs = read_program(BESIDE)
    assert costs.collectives == {"all-gather": Collective(7 * 2, 7 * 2 * 2 * 2048 * 2048)}


# From v5e:2x4, shortened: a prefetch in parts.
PARTS = """
ENTRY %main (p: f32[256,2048]) -> f32[64,2048] {
  %p = f32[256,2048]{1,0:T(8,128)} parameter(0)
  %s.8 = ((f32[256,2048]{1,0}), f32[64,2048]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p)
  %s.9 = ((f32[256,2048]{1,0}), f32[64,2048]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p)
  %d.8 = f32[64,2048]{1,0:T(8,128)S(1)} slice-done(%s.8)
  %d.9 = f32[64,2048]{1,0:T(8,128)S(1)} slice-done(%s.9)
  ROOT %out = f32[64,2048]{1,0:T(8,128)S(1)} add(%d.8, %d.9)
}
"""


def test_read_program_counts_of_a_prefetch_the_part_that_is_read() -> None:
    assert read_program(PARTS).num_bytes == 2 * 4 * 64 * 2048


# Six layers tanh(x @ w) of bfloat16, then a scan over five: x is [1024, 2048], each w [2048, 2048].
# Compiled for v6e by libtpu 0.0.52 (jax 0.10.2), written by --xla_dump_to, without metadata.
SLICES = Path(__file__).parent / "recorded" / "slices_v6e.txt"


@pytest.mark.parametrize("form", ["dumped", "as_text"])
def test_read_program_counts_slices_once_as_their_own_bytes(form: str) -> None:
    text = SLICES.read_text()
    if form == "as_text":  # the same instructions, written shorter
        text = re.sub(
            r"async-start(\(%[\w.]+\)), calls=%async_computation[\w.]*", r"slice-start\1", text
        )
        text = text.replace("async-done(", "slice-done(")
    assert text.count("slice-start(" if form == "as_text" else "async-start(") == 8
    x, w = 2 * 1024 * 2048, 2 * 2048 * 2048
    # x is read and the result written; each weight is read once, whole or in two slices, and in the
    # scan one of five each time; the first is fetched again at the end, for the next execution.
    assert read_program(text).num_bytes == pytest.approx(2 * x + (6 + 5 + 1) * w, abs=100)


def test_read_program_reads_elements_of_tuples_in_both_spellings() -> None:
    # jaxlib 0.12.0.1 returns the first and dumps the second.
    text = """
%body (t: (s32[], f32[64,128], f32[5,128])) -> (s32[], f32[64,128], f32[5,128]) {
  %t = (s32[], f32[64,128]{1,0}, f32[5,128]{1,0}) parameter(0)
  %get.0 = s32[] get-tuple-element(%t), index=0
  %get.1 = f32[64,128]{1,0} get-tuple-element(%t), index=1
  %get.2 = f32[5,128]{1,0} get-tuple-element(%t), index=2
  %add = f32[64,128]{1,0} add(%get.1, %get.1)
  ROOT %u = (s32[], f32[64,128]{1,0}, f32[5,128]{1,0}) tuple(%get.0, %add, %get.2)
}

ENTRY %main (s: (s32[], f32[64,128], f32[5,128])) -> (s32[], f32[64,128], f32[5,128]) {
  %s = (s32[], f32[64,128]{1,0}, f32[5,128]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[64,128]{1,0}, f32[5,128]{1,0}) while(%s), body=%body, TRIPS
}
""".replace("TRIPS", 'backend_config={"known_trip_count":{"n":"7"}}')
    dumped = re.sub(r"  %get\.\d = .*\n", "", text)
    dumped = re.sub(r"%get\.(\d)", r"%t#\1", dumped)
    assert "%t#1" in dumped
    for written in (text, dumped):
        assert read_program(written).num_bytes == 7 * 3 * 4 * 64 * 128


def test_read_program_counts_of_stacked_arrays_what_a_loop_reads_and_writes_of_them() -> None:
    def f(stacked):
        return jax.lax.scan(lambda c, x: (c, jnp.sin(x) + c), jnp.float32(1), stacked)[1]

    text = jax.jit(f).lower(jnp.ones((50, 1000))).compile().as_text()
    whole = 4 * 50 * 1000
    assert "dynamic-update-slice" in text
    # Both once, the result perhaps filled before; not both whole in each of fifty turns.
    assert 2 * whole <= read_program(text).num_bytes < 4 * whole


IN_PLACE = """
%update (p: f32[64,128], u: f32[1,128], i: s32[]) -> f32[64,128] {
  %p = f32[64,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %twice = f32[1,128]{1,0} add(%u, %u)
  ROOT %d = f32[64,128]{1,0} dynamic-update-slice(%p, %twice, %i, %i)
}

ENTRY %main (a: f32[64,128], b: f32[1,128], i: s32[]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %b = f32[1,128]{1,0} parameter(1)
  %i = s32[]{:S(2)} parameter(2)
  BODY
}
"""


@pytest.mark.parametrize(
    ("body", "num_bytes"),
    [
        ("ROOT %o = f32[64,128]{1,0} dynamic-update-slice(%a, %b, %i, %i)", 2 * 512),
        ("ROOT %o = f32[64,128]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%update", 2 * 512),
        ("ROOT %o = f32[64,128]{1,0:S(1)} fusion(%a, %b, %i), kind=kLoop, calls=%update", 512),
        ("ROOT %o = f32[8,128]{1,0} gather(%a, %i), offset_dims={0}", 2 * 8 * 512),
        ("ROOT %o = f32[8,128]{1,0} dynamic-slice(%a, %i, %i)", 2 * 8 * 512),
        ("ROOT %o = f32[64,128]{1,0} add(%a, %a)", 3 * 64 * 512),
    ],
)
def test_read_program_counts_what_is_read_and_written_of_an_array(
    body: str, num_bytes: int
) -> None:
    assert read_program(IN_PLACE.replace("BODY", body)).num_bytes == num_bytes


def test_read_program_refuses_other_text() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("module @jit_f {}")
