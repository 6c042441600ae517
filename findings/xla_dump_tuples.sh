#!/usr/bin/env bash
# Expected: compiled.as_text() and the file that XLA's --xla_dump_to writes of the same CPU program are the
# same text, as they are in jaxlib 0.10.
# Found: in the file of jaxlib 0.12 an operand is written %tuple#2 in place of a get-tuple-element. A
# reader that looks operands up by name takes the whole tuple for its element.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3.13}  # jax 0.12 needs Python >= 3.12
"$python" -m pip install -q --target "$place" jax==0.12.0.1 jaxlib==0.12.0.1
cd "$place"
XLA_FLAGS=--xla_dump_to=$place/dump PYTHONPATH=$place JAX_PLATFORMS=cpu "$python" - <<'PYTHON'
import pathlib
import re

import jax
import jax.numpy as jnp

print("jax", jax.__version__, "jaxlib", jax.lib.__version__)


def looped(x, weights):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, weights)[0]


returned = jax.jit(looped).lower(jnp.ones((64, 128)), jnp.ones((5, 128, 128))).compile().as_text()
(file,) = pathlib.Path("dump").glob("*jit_looped*cpu_after_optimizations.txt")
written = file.read_text()
for name, text in {"as_text()": returned, "--xla_dump_to": written}.items():
    counts = text.count(" get-tuple-element("), len(re.findall(r"%[\w.]+#\d", text))
    print(f"{name}: {counts[0]} get-tuple-element, {counts[1]} operands such as %tuple#2")
    assert (counts[1] > 0) == (text is written)
assert returned.count(" get-tuple-element(") > written.count(" get-tuple-element(")
PYTHON
