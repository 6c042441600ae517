"""A run that goes on with other data at the same place; it was asked to record their contents."""

import functools
import random
import shutil
from pathlib import Path

import numpy as np

from tests.chaos.engine import Try, asked, fine
from tests.chaos.runs import Halted, copied, teacher_words
from tests.data.images import picture, png, write_folder
from tests.tiny import results, scratch

NAME = "a run goes on with other data"
TRIES = 20
_CONTENTS = "--config.data.digest=contents"
_STEPS = "--config.teacher.steps=4"


def _pictures(folder: Path) -> Path:
    """Write twelve images of three classes."""
    files = {f"{'abc'[i % 3]}/{i}.png": png(picture(i)) for i in range(12)}
    return write_folder(folder, files)


def _words(workdir: Path, data: Path, kind: str) -> tuple[str, ...]:
    more = (f"--config.data.name={kind}", f"--config.data.path={data}", _CONTENTS)
    network = ("--config.model.num_classes=3", "--config.model.image_channels=3")
    return teacher_words(workdir, *more, *network, "--config.data.test_fraction=0", _STEPS)


@functools.cache
def _whole(kind: str) -> tuple[Path, Path]:
    """Return (the run, its data); do not change them."""
    folder = scratch()
    if kind == "image_folder":
        data = _pictures(folder / "data")
    else:
        data = folder / "data.npz"
        images = np.stack([picture(i) for i in range(12)])
        np.savez(data, images=images, labels=np.arange(12) % 3)
    run = folder / "run"
    fine(*_words(run, data, kind))
    return run, data


def _added(data: Path, dice: random.Random) -> None:
    write_folder(data, {f"{dice.choice('abc')}/{dice.choice([0, 50])}x.png": png(picture(50))})


def _removed(data: Path, dice: random.Random) -> None:
    dice.choice(sorted(data.glob("*/*.png"))).unlink()


def _renamed(data: Path, dice: random.Random) -> None:
    file = dice.choice(sorted(data.glob("*/*.png")))
    file.rename(file.with_name(f"{dice.choice([0, 99])}y.png"))


def _moved(data: Path, dice: random.Random) -> None:
    file = dice.choice(sorted(data.glob("[ab]/*.png")))
    file.rename(data / "c" / file.name)


def _class_renamed(data: Path, dice: random.Random) -> None:
    (data / "a").rename(data / "z")


def _class_added(data: Path, dice: random.Random) -> None:
    write_folder(data, {"d/70.png": png(picture(70))})


def _classes_swapped(data: Path, dice: random.Random) -> None:
    (data / "a").rename(data / "x")
    (data / "b").rename(data / "a")
    (data / "x").rename(data / "b")


def _repainted(data: Path, dice: random.Random) -> None:
    file = dice.choice(sorted(data.glob("*/*.png")))
    file.write_bytes(png(picture(60)))


FOLDER = (
    _repainted,
    _added,
    _removed,
    _renamed,
    _moved,
    _class_renamed,
    _class_added,
    _classes_swapped,
)


def _fewer(entries: dict, dice: random.Random) -> None:
    for name in entries:
        entries[name] = entries[name][:9]


def _other_labels(entries: dict, dice: random.Random) -> None:
    entries["labels"] = entries["labels"][::-1].copy()


def _one_pixel(entries: dict, dice: random.Random) -> None:
    entries["images"].flat[dice.randrange(entries["images"].size)] ^= 1


ARRAYS = (_fewer, _other_labels, _one_pixel)


def attempt(dice: random.Random, folder: Path) -> Try:
    """Change the data below a run that was stopped, then go on with it."""
    kind = dice.choice(["image_folder", "arrays"])
    whole, original = _whole(kind)
    changes = FOLDER if kind == "image_folder" else ARRAYS
    change = dice.choice(changes)
    kept = original.with_name("kept" + original.suffix)
    run = copied(whole, folder / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    (run / "teacher.safetensors").unlink()
    original.rename(kept)
    try:
        if kind == "image_folder":
            shutil.copytree(kept, original)
            change(original, dice)
        else:
            with np.load(kept) as archive:
                entries = dict(archive)
            change(entries, dice)
            np.savez(original, **entries)
        halted = Halted(run, _words(run, original, kind), results(whole))
        what = f"{kind}:{change.__name__.replace('_', ' ')}"
        return asked(folder, what, *halted.words, same=halted.same, kept=(run,))
    finally:
        shutil.rmtree(original) if original.is_dir() else original.unlink()
        kept.rename(original)
