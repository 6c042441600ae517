#!/usr/bin/env bash
# Expected: a flax.linen module that is applied with its parameters uses them; the initialisers of
# self.param run in init alone.
# Found: apply runs every initialiser too, traced for its shape, each time the module is traced: for a
# network of many small layers a fifth of the time that tracing takes.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
cd "$place"
PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

print("jax", jax.__version__, "flax", flax.__version__)
calls = []


def drawn(key, shape):
    calls.append(type(key).__name__)
    return jax.random.normal(key, shape)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", drawn, (3, 3))


x = jnp.ones((1, 3))
params = Layer().init(jax.random.key(0), x)
in_init = len(calls)
for _ in range(3):
    Layer().apply(params, x)
print("initialiser runs:", in_init, "in init,", len(calls) - in_init, "in three applications", set(calls))
assert (in_init, len(calls) - in_init) == (1, 3)
PYTHON
