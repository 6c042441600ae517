"""Hostile pickles, with a harmless payload, wherever a file may hold one."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np

from tests.chaos.engine import MARKER, Try, asked
from tests.chaos.payloads import Payload
from tests.tiny import RECIPE, distill_words, student_run
from tests.weights.test_unpickle import HOSTILE

NAME = "hostile pickles"
TRIES = 36


def _raw(pickled: bytes, file: Path) -> None:
    file.write_bytes(pickled)


def _torch_zip(pickled: bytes, file: Path) -> None:
    """As torch.save writes it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")


def _after_a_sound_one(pickled: bytes, file: Path) -> None:
    """In torch's format before 1.6, several pickles follow each other."""
    magic = 0x1950A86A20F9469CFC6C
    parts = [pickle.dumps(it, 2) for it in (magic, 1001, {"little_endian": True})]
    file.write_bytes(b"".join(parts) + pickled)


def attempt(dice: random.Random, folder: Path) -> Try:
    """Hand a hostile file to a command that reads such files."""
    marker = folder / MARKER
    if dice.random() < 0.25:
        return _array(dice, folder)
    name = dice.choice(sorted(HOSTILE))
    carrier = dice.choice([_raw, _torch_zip, _after_a_sound_one])
    file = folder / f"x{dice.choice(['.pkl', '.pth', '.bin', '.pt', '.ckpt', '.safetensors'])}"
    carrier(HOSTILE[name][0](marker), file)
    measured = ("evaluate", f"--workdir={student_run()}", f"--out={folder}/x.json")
    words: tuple[object, ...] = dice.choice(
        [
            ("convert", file, folder / "out.safetensors", f"--config={RECIPE}"),
            ("sample", f"--workdir={student_run()}", f"--weights={file}", f"--out={folder}/x.png"),
            (*distill_words(folder / "run")[:-1], f"--config.teacher.weights={file}"),
            (*measured, "--features=inception", f"--inception_weights={file}", "--resize=edm"),
        ]
    )
    what = f"{name}{carrier.__name__.replace('_', ' ')}, {file.suffix}"
    return asked(folder, what, *words, same=lambda: False, kept=())


def _array(dice: random.Random, folder: Path) -> Try:
    """NumPy's files may hold pickled objects."""
    objects = np.array([Payload(folder / MARKER)], object)
    file = folder / "x.npz"
    if dice.random() < 0.3:  # no archive at all
        file.write_bytes(pickle.dumps(objects))
    else:
        buffer = io.BytesIO()
        np.savez(buffer, **{dice.choice(["images", "arr_0", "labels"]): objects})
        file.write_bytes(buffer.getvalue())
    data = (f"--config.data.path={file}", "--config.data.name=arrays")
    measured = ("evaluate", f"--workdir={student_run()}", f"--out={folder}/x.json")
    words: tuple[object, ...] = dice.choice(
        [
            ("data", f"--config={RECIPE}", *data, f"--out={folder}/x.png"),
            ("train-teacher", f"--config={RECIPE}", *data, f"--workdir={folder}/run", "--dry_run"),
            (*measured, f"--images={file}"),
            (*measured, f"--reference={file}"),
        ]
    )
    return asked(folder, "objects in an array", *words, same=lambda: False, kept=())
