#!/usr/bin/env bash
# Expected: a scheduler_config.json that diffusers saves is JSON, as its name and the Hub's tools say.
# Found: DPMSolverMultistepScheduler and its kin with their defaults save "lambda_min_clipped": -Infinity,
# which is no JSON (RFC 8259, 6): Python's json reads it, strict readers such as orjson refuse the whole file.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.13.0 numpy diffusers==0.42.1 orjson==3.11.4
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import json
import tempfile
from pathlib import Path

import diffusers
import orjson

print("diffusers", diffusers.__version__, "orjson", orjson.__version__)
KINDS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DDIMScheduler")
refused = {}
for kind in KINDS:
    with tempfile.TemporaryDirectory() as folder:
        getattr(diffusers, kind)().save_pretrained(folder)
        text = Path(folder, "scheduler_config.json").read_text()
        assert getattr(diffusers, kind).from_pretrained(folder)
    words = [key for key, value in json.loads(text).items() if value == float("-inf")]
    try:
        orjson.loads(text)
        refused[kind] = False
    except orjson.JSONDecodeError as error:
        refused[kind] = True
        print(kind, words, "orjson:", error)
assert refused == {KINDS[0]: True, KINDS[1]: True, KINDS[2]: False}
PYTHON
