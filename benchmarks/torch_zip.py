"""A zip of PNG as a dataset of torch: what its DataLoader's processes import."""

import io
import zipfile

import numpy as np
import torch
from PIL import Image

__all__ = ["ZipOfPng"]


class ZipOfPng(torch.utils.data.Dataset):
    """Images [3, h, w] in [-1, 1] of a zip; each process opens it for itself."""

    def __init__(self, file: str) -> None:
        self._file, self._archive = file, None
        with zipfile.ZipFile(file) as archive:
            self._names = [name for name in archive.namelist() if name.endswith(".png")]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> torch.Tensor:
        self._archive = self._archive or zipfile.ZipFile(self._file)
        pixels = np.asarray(Image.open(io.BytesIO(self._archive.read(self._names[index]))))
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
