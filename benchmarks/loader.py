"""Time the data sources on images that this program makes itself, against their targets.

    python -m benchmarks.loader
    python -m benchmarks.loader --images=50000 --workers=8 --json=loader.json

Makes 64 x 64 colour images (smooth shapes with noise, so that their PNGs are of the size that
photographs have), writes them as a zip in EDM's layout and, by `dmd2 data --write`, as
array_record, and reads shuffled batches of each as training does. The files lie in the page
cache: it is the programs that are timed, not the disk. Prints images/s, the target for 2 cores
and the share of a training step of 0.5 s that reading a batch would take without prefetching.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dmd2_jax import data
from dmd2_jax.commands.data.inspect import write_shards
from dmd2_jax.data.reading.decode import encode_png
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.typing import Shaped

SIDE = 64
CLASSES = 10
TARGETS = {"zip of PNG": 1_500, "array_record, raw": 10_000, "array_record, png": None}
"""Images/s on 2 cores."""

_STEP_SECONDS = 0.5


def main() -> None:
    """Run the benchmark that the command line asks for and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4_000, help="how many images to make")
    parser.add_argument("--batch_size", type=int, default=256, help="images of a batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to read each source")
    parser.add_argument("--workers", type=int, default=0, help="config.data.workers; 0: all cores")
    parser.add_argument("--json", default="", help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), arguments)
    rows = [("source", "images/s", "target", "reached", f"share of a {_STEP_SECONDS} s step")]
    for name, speed in figures.items():
        target = TARGETS[name]
        share = arguments.batch_size / speed / _STEP_SECONDS
        reached = "-" if target is None else "yes" if speed >= target else "no"
        rows.append(
            (name, f"{speed:,.0f}", f"{target:,}" if target else "-", reached, f"{share:.1%}")
        )
    print(f"{os.cpu_count()} cores, workers={arguments.workers}, batch {arguments.batch_size}")
    print(aligned(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Make the files in `folder` and return the images/s of each source."""
    write_zip(folder / "images.zip", arguments.images)
    from_zip = source_config("image_folder", folder / "images.zip", arguments.workers)
    places = {"zip of PNG": from_zip}
    for encoding in ("raw", "png"):
        target = folder / encoding
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            write_shards(
                ConfigDict({"data": from_zip, "model": {"resolution": SIDE}}),
                target,
                encoding=encoding,
            )
        name = f"array_record, {encoding}"
        places[name] = source_config("array_record", target, arguments.workers)
    return {
        name: speed(data.load(config, "train", SIDE), arguments.batch_size, arguments.seconds)
        for name, config in places.items()
    }


def source_config(name: str, path: Path, workers: int) -> ConfigDict:
    """Return a `config.data`."""
    return ConfigDict({"name": name, "path": str(path), "workers": workers})


def speed(source: data.Source, batch_size: int, seconds: float) -> float:
    """Read shuffled batches for some seconds, after one to warm up; return images/s."""
    stream = data.batches(source, batch_size=batch_size, seed=0)
    next(stream)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(stream)["label"])
    return count / (time.perf_counter() - start)


def write_zip(path: Path, count: int) -> None:
    """Write images with labels in EDM's layout."""
    labels = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i in range(count):
            name = f"{i // 1000:05d}/img{i:08d}.png"
            archive.writestr(name, encode_png(photograph(i)))
            labels.append([name, i % CLASSES])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def photograph(seed: int) -> Shaped[np.ndarray, "h w 3"]:
    """Return uint8 [SIDE, SIDE, 3]: waves of random colour and direction, and some noise."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = np.zeros((SIDE, SIDE, 3))
    for frequency in (1, 2, 4, 8):
        u, v, phase = random.uniform(-frequency, frequency, (3, 1, 1, 3))
        image += np.sin(2 * np.pi * (u * x[..., None] + v * y[..., None]) + phase) / frequency
    image = 128 + 50 * image + random.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
