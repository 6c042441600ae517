#!/usr/bin/env bash
# Expected: a path of a bucket, epath.Path("gs://bucket/run"), is absolute: absolute() and resolve() return
# it as it is, as pathlib's do, and pathlib.Path(path) is refused or keeps the bucket's name.
# Found: absolute() and resolve() put the working folder before it, and what results is a path of this
# machine; pathlib.Path(path) is /gs/bucket/run. Nothing warns: what is written there is not in the bucket.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" "etils[epath]==1.15.0"
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import os
import pathlib

import etils
from etils import epath

print("etils", etils.__version__)
path = epath.Path("gs://bucket/run")
found = {
    "absolute": path.absolute(),
    "resolve": path.resolve(),
    "pathlib.Path": pathlib.Path(path),
}
for name, other in found.items():
    print(name, os.fspath(other).replace(os.getcwd(), "$PWD"))
assert path.is_absolute()
assert os.fspath(found["absolute"]) == os.fspath(found["resolve"]) == f"{os.getcwd()}/gs:/bucket/run"
assert os.fspath(found["pathlib.Path"]) == "/gs/bucket/run"
PYTHON
