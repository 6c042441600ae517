#!/usr/bin/env bash
# Expected: the same tensors with the same metadata make the same file, as the format asks for no order
# of time or of a process, and tensors are laid out by size and name.
# Found: safetensors 0.8.0 writes the entries of __metadata__ in an order that changes from one call to
# the next, so that a digest of the file tells two equal files apart. The tensors' order does not change.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" safetensors==0.8.0 numpy==2.3.5
cd "$place"
for _ in 1 2 3; do
    PYTHONPATH=$place "$python" - <<'PYTHON'
import json
import safetensors
import numpy as np
from safetensors.numpy import save

print("safetensors", safetensors.__version__)
tensors = {f"layer.{i}": np.full(4, i, np.float32) for i in range(8)}
metadata = {name: "x" for name in ("format", "step", "run", "license", "author", "title")}
headers = []
for _ in range(20):
    data = save(tensors, metadata)
    size = int.from_bytes(data[:8], "little")
    headers.append(json.loads(data[8 : 8 + size]))
    assert headers[-1]["__metadata__"] == metadata
orders = {tuple(header["__metadata__"]) for header in headers}
print(len(orders), "orders of the same six entries in 20 files, such as", *list(orders)[:2])
assert len(orders) > 1
assert len({tuple(k for k in header if k != "__metadata__") for header in headers}) == 1
PYTHON
done
