#!/usr/bin/env bash
# Expected: a checkpoint restored into arrays of another type is refused, or warned of, at least where
# values do not fit.
# Found: Orbax casts any type to any other without a word. int32 16777217 comes back as int8 1, and as
# float32 16777216.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
cd "$place"
PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import pathlib

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

print("jax", jax.__version__, "orbax", ocp.__version__)
folder = pathlib.Path.cwd() / "checkpoint"
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, {"step": jnp.array([16777217], jnp.int32)})
    checkpointer.wait_until_finished()
    for dtype, expected in ((jnp.int8, 1), (jnp.float32, 16777216)):
        template = {"step": jax.ShapeDtypeStruct((1,), dtype)}
        restored = checkpointer.restore(folder, template)["step"]
        print("int32 16777217 restored as", restored.dtype, int(restored[0]))
        assert restored.dtype == dtype
        assert int(restored[0]) == expected
PYTHON
