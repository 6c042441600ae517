"""The Inception feature network, from a file of its published weights."""

import functools
import os
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from dmd2_jax.evaluation.extractor import Extractor
from dmd2_jax.evaluation.resize import check_preparation, prepare
from dmd2_jax.networks.inception import FEATURES, InceptionV3, inception_params
from dmd2_jax.runtime.torch_files import read_torch
from dmd2_jax.runtime.unpickle import PickleError
from dmd2_jax.typing import Array, Params

__all__ = ["WEIGHTS", "inception_extractor", "read_inception"]

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""The file of weights, as pytorch-fid publishes it (GitHub release `fid_weights`)."""


def read_inception(path: str | os.PathLike) -> Params:
    """Read the weights of the FID network; nothing in the file is executed.

    NVIDIA's `inception-v3-2015-12-05.pkl` (or `inception-2015-12-05.pt`) holds the same numbers
    inside a TorchScript program, whose layout is not documented and which only runs: it is refused
    by name. `resize="edm"` gives its way of preparing images to pytorch-fid's weights.

    Args:
      path: pytorch-fid's `WEIGHTS`, or any file of torch.save with the same state dict.

    Returns:
      The parameters of `networks.inception.InceptionV3`.

    Raises:
      ValueError: if the file is missing, damaged, hostile, or not these weights.
    """
    remedy = f"expected pytorch-fid's {WEIGHTS}, from its GitHub release fid_weights"
    try:
        tensors = read_torch(path)
    except PickleError as error:
        if Path(path).is_file() and _is_program(path):
            raise ValueError(
                f"{path} is a TorchScript program, as NVIDIA's inception files are, and is not "
                f"run; {remedy}: it holds the same weights, and resize='edm' prepares images as "
                "NVIDIA's file does."
            ) from error
        raise ValueError(f"{error} ({remedy}.)") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tensors.items()
    ):
        raise ValueError(
            f"{path} holds a {type(tensors).__name__} that is no state dict, {remedy}; NVIDIA's "
            "pickles of networks are not read, resize='edm' prepares images as they do."
        )
    try:
        return inception_params(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def inception_extractor(
    weights: str | os.PathLike | Params,
    resize: str = "pytorch_fid",
    *,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> Extractor:
    """Return the Inception feature network, with logits for the Inception Score.

    Args:
      weights: a file, see `read_inception`, or what that returned.
      resize: one of `resize.PREPARATIONS`: whose figures these are to agree with, or "patch" for
        patch FID, the features of the central 299 x 299 pixels at full resolution.
      batch_size: see `Extractor`.
      mesh: see `Extractor`.

    Returns:
      The extractor "inception_v3/RESIZE".

    Raises:
      ValueError: if the file or the name is refused.
    """
    check_preparation(resize, (1, 299, 299, 3))
    if isinstance(weights, str | os.PathLike):
        weights = read_inception(weights)
    return Extractor(
        f"inception_v3/{resize}",
        FEATURES,
        functools.partial(_apply, resize),
        weights,
        batch_size,
        mesh,
        functools.partial(check_preparation, resize),
    )


def _apply(resize: str, params: Params, images: Array) -> tuple[Array, Array]:
    return InceptionV3().apply({"params": params}, prepare(resize, images))


def _is_program(path: str | os.PathLike) -> bool:
    """Return whether the file has a TorchScript program's marks: a zip with code/ in it."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return any("/code/" in name or name.endswith("/constants.pkl") for name in names)
