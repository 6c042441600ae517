"""Random damage to the files of each source: refused, reported or harmless, never other pixels."""

import logging
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmd2_jax.data import Options, array_record, arrays, image_folder
from dmd2_jax.data.reading.contract import Batch
from tests.data.images import edm_files, write_zip
from tests.data.test_array_record import IMAGES, LABELS
from tests.data.test_array_record import write as write_shards

ROUNDS = 60


def made(kind: str, folder: Path) -> tuple[ModuleType, Path, Path]:
    """Write a source; return its module, its path and the file to damage."""
    if kind in ("raw", "png"):
        path = write_shards(folder / "shards", kind)
        return array_record, path, path / "train-00000-of-00001.array_record"
    if kind == "npz":
        np.savez_compressed(folder / "x.npz", images=IMAGES, labels=LABELS)
        return arrays, folder / "x.npz", folder / "x.npz"
    way = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}[kind]
    path = write_zip(folder / "x.zip", edm_files(LABELS.tolist()), way)
    return image_folder, path, path


def damaged(content: bytes, random: np.random.RandomState) -> bytes:
    """Flip a bit, overwrite some bytes, or cut the end off."""
    place, way = random.randint(len(content)), random.randint(3)
    if way == 0:
        return content[:place]
    new = bytearray(content)
    if way == 1:
        new[place] ^= 1 << random.randint(8)
    else:
        new[place : place + 64] = random.bytes(len(new[place : place + 64]))
    return bytes(new)


def everything(module: ModuleType, path: Path) -> tuple[Batch, set[int]]:
    """Every example, and the numbers of those that are reported as corrupt."""
    source = module.load(str(path), "all", 8, Options(max_corrupt=1000, workers=1))
    return source.examples(np.arange(len(source))), set(getattr(source, "corrupt", {}))


@pytest.mark.parametrize("kind", ["stored", "deflated", "npz", "raw", "png"])
def test_damage_is_refused_reported_or_harmless(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.CRITICAL)
    module, path, file = made(kind, tmp_path)
    content, random = file.read_bytes(), np.random.RandomState(0)
    noticed = 0
    for i in range(ROUNDS):
        file.write_bytes(damaged(content, random))
        try:
            batch, corrupt = everything(module, path)
        except ValueError:  # what the command answers with a message
            noticed += 1
            continue
        noticed += bool(corrupt)
        assert len(batch["image"]) == 30, i
        kept = [k for k in range(30) if k not in corrupt]
        np.testing.assert_array_equal(batch["image"][kept], IMAGES[kept], err_msg=f"{i}")
        np.testing.assert_array_equal(batch["label"][kept], LABELS[kept], err_msg=f"{i}")
    # array_record pads its blocks, where damage does no harm.
    assert noticed > ROUNDS / (4 if module is array_record else 2)
