#!/usr/bin/env bash
# Expected: the topology v4:2x2x1, four chips, has four devices: JAX on a v4 slice shows one a chip.
# Found: libtpu makes eight, a core each, with half of a chip's memory; only with
# chip_config_name="megacore" are there four. v5p:2x2x1, whose chips have two cores too, has four at once.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.52
cd "$place"
export TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-16 TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0
PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import importlib.metadata

import jax
from jax.experimental import topologies

print("jax", jax.__version__, "libtpu", importlib.metadata.version("libtpu"))
counts = {}
for chip, options in (("v4", {}), ("v4", {"chip_config_name": "megacore"}), ("v5p", {})):
    found = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2x1", **options)
    counts[chip, *options.values()] = len(found.devices)
print(counts)
assert counts == {("v4",): 8, ("v4", "megacore"): 4, ("v5p",): 4}
PYTHON
