#!/usr/bin/env bash
# Expected: NumPy's as_strided gives a view of an array of any of ml_dtypes' types, as it does of bfloat16.
# Found: of float8_e5m2 alone it raises "data type '<f1' not understood"; float8_e4m3fn, its fnuz kinds
# and bfloat16 work. So does everything built on it, such as sliding_window_view.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" numpy==2.4.6 ml_dtypes==0.6.0
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import ml_dtypes
import numpy as np

print("numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__)
said = {}
for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
    x = np.arange(6).astype(getattr(ml_dtypes, name))
    try:
        view = np.lib.stride_tricks.sliding_window_view(x, 3)
        said[name] = view.astype(int).tolist()
    except TypeError as error:
        said[name] = str(error)
    print(name, said[name])
assert said.pop("float8_e5m2") == "data type '<f1' not understood"
assert set(map(str, said.values())) == {str([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])}
PYTHON
