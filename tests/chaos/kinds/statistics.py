"""Reference statistics that are none."""

import functools
import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np

from tests.chaos.damages import damage
from tests.chaos.engine import MARKER, Try, asked, fine
from tests.chaos.payloads import Payload
from tests.tiny import scratch, student_run

NAME = "reference statistics damaged, or no covariance"
TRIES = 32


@functools.cache
def _measured() -> tuple[Path, Path, float]:
    """Return a run with its classifier, statistics that were written, and the FID by them."""
    folder = scratch()
    run, file = folder / "run", folder / "real.npz"
    shutil.copytree(student_run(), run)
    fine("evaluate", *_words(run), f"--write_reference={file}", f"--out={folder / 'x.json'}")
    fine("evaluate", *_words(run), f"--reference={file}", f"--out={folder / 'y.json'}")
    return run, file, json.loads((folder / "y.json").read_text())["student_fid"]


def _words(run: Path) -> tuple[str, ...]:
    return (f"--workdir={run}", "--which=student", "--num=60")


def _negated(entries: dict, dice: random.Random) -> None:
    entries["sigma"] = -entries["sigma"]


def _lopsided(entries: dict, dice: random.Random) -> None:
    entries["sigma"][0, -1] += np.abs(entries["sigma"]).max()


def _no_number(entries: dict, dice: random.Random) -> None:
    entries[dice.choice(["mu", "sigma"])].flat[dice.randrange(8)] = dice.choice([np.nan, np.inf])


def _other_size(entries: dict, dice: random.Random) -> None:
    size = dice.choice([1, 3, 47, 49, 2048])
    entries["mu"], entries["sigma"] = np.zeros(size), np.eye(size)


def _other_shape(entries: dict, dice: random.Random) -> None:
    name = dice.choice(["mu", "sigma"])
    entries[name] = dice.choice([entries[name][None], entries[name].ravel()[:-1], np.float64(1.0)])


def _other_type(entries: dict, dice: random.Random) -> None:
    name = dice.choice(["mu", "sigma", "count", "extractor", "resolution"])
    entries[name] = dice.choice(
        [entries[name].astype(str), entries[name] + 1j if name == "mu" else np.array(["x"] * 3)]
    )


def _gone(entries: dict, dice: random.Random) -> None:
    del entries[dice.choice(["mu", "sigma"])]


def _other_extractor(entries: dict, dice: random.Random) -> None:
    entries["extractor"] = np.array("inception_v3/edm")


def _absurd(entries: dict, dice: random.Random) -> None:
    entries[dice.choice(["resolution", "channels"])] = np.array(dice.choice([-1, 0, 2**62]))


CHANGES = (
    *(_negated, _lopsided, _no_number, _other_size, _other_shape, _other_type, _gone),
    *(_other_extractor, _absurd),
)


def _huge_header(file: Path) -> str:
    """An array whose header asks for more memory than there is, of zeros that compress well."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("mu", (40_000,)), ("sigma", (40_000, 40_000))):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                head, {"descr": "<f8", "fortran_order": False, "shape": shape}
            )
            archive.writestr(f"{name}.npy", head.getvalue() + bytes(10**7))
    return "a header of 12 GB"


def attempt(dice: random.Random, folder: Path) -> Try:
    """Harm statistics, then measure a student by them."""
    run, source, fid = _measured()
    file, out = folder / "real.npz", folder / "figures.json"
    shutil.copy(source, file)
    draw = dice.random()
    if draw < 0.4:
        what = damage(file, dice)
    elif draw < 0.5:
        what = _huge_header(file)
    else:
        with np.load(file) as archive:
            entries = {name: archive[name] for name in archive.files}
        if draw < 0.6:
            name = dice.choice(sorted(entries))
            entries[name] = np.array([Payload(folder / MARKER)], object)
            what = f"{name} a pickle"
        else:
            change = dice.choice(CHANGES)
            change(entries, dice)
            what = change.__name__.strip("_").replace("_", " ")
        np.savez(file, **entries)
    words = ("evaluate", *_words(run), f"--reference={file}", f"--out={out}")
    same = lambda: json.loads(out.read_text())["student_fid"] == fid  # noqa: E731
    return asked(folder, what, *words, same=same, kept=())
