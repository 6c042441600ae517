#!/usr/bin/env bash
# Expected: compiled.as_text() and the program that XLA's --xla_dump_to writes for the same compilation
# are the same text, so that a reader of one reads the other.
# Found: a TPU program's prefetches of slices have another opcode in each: slice-start in as_text(),
# async-start with a computation of its own in the file, never both. Who counts bytes by opcode counts
# an operand whole, three times, in one of the two.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.52
cd "$place"
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-16 TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0
XLA_FLAGS=--xla_dump_to=$place/dump PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
from jax.experimental import topologies

print("jax", jax.__version__, "libtpu", importlib.metadata.version("libtpu"))
slice_of_tpus = topologies.get_topology_desc(platform="tpu", topology_name="v6e:1x1")
mesh = jax.sharding.Mesh(slice_of_tpus.devices, ("d",))
place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def layers(x, weights):
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


x, w = (jax.ShapeDtypeStruct((n, 2048), jnp.bfloat16, sharding=place) for n in (1024, 2048))
returned = jax.jit(layers).lower(x, [w] * 6).compile().as_text()
(file,) = pathlib.Path("dump").glob("*jit_layers*after_optimizations.txt")
written = file.read_text()
for name, text in {"as_text()": returned, "--xla_dump_to": written}.items():
    print(name, {opcode: text.count(f" {opcode}(") for opcode in ("slice-start", "async-start")})
assert returned.count(" slice-start(") == written.count(" async-start(") > 0
assert returned.count(" async-start(") == written.count(" slice-start(") == 0
PYTHON
