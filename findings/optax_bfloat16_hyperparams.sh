#!/usr/bin/env bash
# Expected: optax.inject_hyperparams(optax.adam) makes the rate a part of the state and changes nothing
# else; the first update of bfloat16 parameters is about -learning_rate, as of plain optax.adam.
# Found: every number, b2 too, is rounded to the type of the parameters. b2 = 0.999 becomes 1 in
# bfloat16, the bias correction divides 0 by 0, and the first update is NaN.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
cd "$place"
PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
import optax

print("jax", jax.__version__, "optax", optax.__version__)
params = {"w": jnp.ones(3, jnp.bfloat16)}
updates = {}
for name, adam in {"adam": optax.adam, "injected": optax.inject_hyperparams(optax.adam)}.items():
    optimiser = adam(learning_rate=1e-3)
    state = optimiser.init(params)
    updates[name] = np.asarray(optimiser.update(params, state, params)[0]["w"], np.float32)
    print(name, updates[name], getattr(state, "hyperparams", {}))
assert np.allclose(updates["adam"], -1e-3, rtol=0.02)
assert np.isnan(updates["injected"]).all()
assert float(state.hyperparams["b2"]) == 1.0
PYTHON
