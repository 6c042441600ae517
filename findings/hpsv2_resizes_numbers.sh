#!/usr/bin/env bash
# Expected: hpsv2 prepares images as the CLIP that it was tuned from: Pillow's bicubic, rounded to bytes, of the
# shorter side, the middle cut out; so the same image and weights have the same score on any installation.
# Found: hpsv2 1.2.0 makes numbers of the bytes first and resizes those, the longer side, with black around; the
# result leaves 0..1, and whether it is smoothed is torchvision's default, which hpsv2 does not pin: with the
# other one the pixels of a fine pattern differ by more than half of the range.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install -q --target "$place" torch==2.14.1 torchvision==0.29.1 pillow numpy
"$python" -m pip install -q --no-deps --target "$place" hpsv2==1.2.0
cd "$place"
PYTHONPATH=$place "$python" - <<'PYTHON'
import functools
import importlib
import inspect
import pathlib
import sys
import types
from importlib import metadata

import numpy as np
import torchvision
from PIL import Image

# Its file of transforms alone: the package itself imports a dozen others.
package = types.ModuleType("hps_clip")
package.__path__ = [str(pathlib.Path("hpsv2/src/open_clip").resolve())]
sys.modules["hps_clip"] = package
transform = importlib.import_module("hps_clip.transform")
print("hpsv2", metadata.version("hpsv2"), "torchvision", torchvision.__version__)

resize = transform.F.resize
assert inspect.signature(resize).parameters["antialias"].default is True
prepare = transform.image_transform(224, is_train=False, resize_longest_max=True)
names = [type(step).__name__ for step in prepare.transforms]
print(names)
assert names.index("ToTensor") < names.index("ResizeMaxSize")

mean, std = np.array(prepare.transforms[-1].normalize.mean), np.array(prepare.transforms[-1].normalize.std)
stripes = np.tile(np.array([[255, 0, 0, 255, 255]], np.uint8), (672, 205))[:, :1024]
image = Image.fromarray(np.repeat(stripes[..., None], 3, axis=-1))
made = {}
for antialias in (True, False):
    transform.F.resize = functools.partial(resize, antialias=antialias)
    made[antialias] = prepare(image).numpy().transpose(1, 2, 0) * std + mean
black = (np.abs(made[True]).max(axis=(1, 2)) < 1e-6).sum()
print("of 224 rows", black, "are black; numbers of", made[False].min().round(3), "to", made[False].max().round(3))
apart = np.abs(made[True] - made[False]).max()
print("smoothed or not:", apart.round(3), "of 1 apart")
assert black == 224 - 147
assert made[False].max() > 1.02 and apart > 0.5
PYTHON
