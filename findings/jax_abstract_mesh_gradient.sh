#!/usr/bin/env bash
# Expected: jax.shard_map over mesh.abstract_mesh does what it does over the mesh itself, as the
# devices come with the arguments; values and gradients alike.
# Found: jax 0.10.2 computes the value, and the gradient where it uses the argument; where it does not
# (a linear function: its gradient is a constant), the program has no devices any more, and running it
# fails: no implementation for the custom call xla.sdy.LocalToGlobalShape.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
cd "$place"
PYTHONPATH=$place JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "$python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

print("jax", jax.__version__)
spec = PartitionSpec("data")
mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
x = jax.device_put(jnp.ones(4), NamedSharding(mesh, spec))


def outcome(function, over, derivative):
    inner = jax.shard_map(function, mesh=over, in_specs=spec, out_specs=spec, check_vma=False)
    total = lambda x: inner(x).sum()
    try:
        return str(jax.jit(jax.grad(total) if derivative else total)(x))
    except jax.errors.JaxRuntimeError as error:
        return f"{type(error).__name__}: {str(error)[:120]}"


def double(x):
    return 2 * x


for name, over in (("mesh", mesh), ("its abstract_mesh", mesh.abstract_mesh)):
    for function in (jnp.sin, double):
        for derivative in (False, True):
            what = "gradient" if derivative else "value"
            print(f"{name}, {function.__name__}, {what}: {outcome(function, over, derivative)}")

assert outcome(double, mesh, True) == "[2. 2. 2. 2.]"
assert outcome(jnp.sin, mesh.abstract_mesh, True) == outcome(jnp.sin, mesh, True)
assert outcome(double, mesh.abstract_mesh, False) == "8.0"
assert "LocalToGlobalShape" in outcome(double, mesh.abstract_mesh, True)
PYTHON
