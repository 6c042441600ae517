"""Images of known pixels, and folders and zips of them."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, side: int = 8, channels: int = 3) -> np.ndarray:
    """uint8 [side, side, channels] noise."""
    return np.random.RandomState(seed).randint(0, 256, (side, side, channels)).astype(np.uint8)


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    """The image as a PNG, converted to Pillow's `mode` first."""
    it = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    (it if mode is None else it.convert(mode)).save(buffer, format="PNG")
    return buffer.getvalue()


def encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    """The image in a format by its file's ending, without loss where the format can do that."""
    lossless = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    name = {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())
    buffer = io.BytesIO()
    it = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    it.save(buffer, format=name, **lossless.get(kind, {}), **options)
    return buffer.getvalue()


def edm_files(classes: list[int], side: int = 8) -> dict[str, bytes]:
    """Files in EDM's layout: image i is picture(i), of class classes[i]."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(len(classes))]
    labels = {"labels": [list(pair) for pair in zip(names, classes, strict=True)]}
    files = {name: png(picture(i, side)) for i, name in enumerate(names)}
    return files | {"dataset.json": json.dumps(labels).encode()}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(
    path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
