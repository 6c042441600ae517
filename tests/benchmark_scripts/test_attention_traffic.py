import jax

from benchmarks.attention_traffic import compiled_layer
from dmd2_jax.networks import fused_attention


def test_layers_say_whether_they_have_the_kernel_and_what_they_move(monkeypatch):
    monkeypatch.setattr(fused_attention, "_TPUS", frozenset({"cpu"}))
    shape, devices = (1, 256, 256, 1, 8), jax.devices()[:2]
    rows = {k: compiled_layer(devices, shape, gradients=True, kernel=k) for k in (False, True)}
    assert [rows[k].fused for k in (False, True)] == [False, True]
    assert min(min(row[1:]) for row in rows.values()) > 2 * 256 * 8
    # The interpreter of a CPU moves more; that the formula's [q, k] weights are counted is seen.
    assert rows[False].num_bytes > 4 * 256 * 256
