#!/usr/bin/env bash
# Expected: jax.random.normal(key, shape, bfloat16) is float32 noise rounded to bfloat16: thousands of
# distinct values, a mean within 4 standard errors of 0.
# Found: 128 distinct values and a mean of about -0.011 at every seed, 11 standard errors of these
# million draws.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2
cd "$place"
PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
for seed in range(3):
    noise = {}
    for dtype in (jnp.bfloat16, jnp.float32):
        drawn = jax.random.normal(jax.random.key(seed), (1_000_000,), dtype)
        noise[dtype] = np.asarray(drawn.astype(jnp.bfloat16), np.float64)
    for dtype, values in noise.items():
        print(seed, dtype.__name__, len(np.unique(values)), "values, mean", values.mean().round(5))
    assert len(np.unique(noise[jnp.bfloat16])) <= 128
    assert -0.016 < noise[jnp.bfloat16].mean() < -0.006
    assert len(np.unique(noise[jnp.float32])) > 1000
    assert abs(noise[jnp.float32].mean()) < 0.004
PYTHON
