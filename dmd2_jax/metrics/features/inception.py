"""The Inception feature network, from a file of its published weights."""

import functools
import os

import numpy as np
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.features.extractor import Extractor
from dmd2_jax.metrics.features.resize import check_preparation, prepare
from dmd2_jax.networks.inception import FEATURES, InceptionV3, inception_params
from dmd2_jax.networks.inception_names import torchvision_tensors
from dmd2_jax.typing import Array, Params
from dmd2_jax.weights.recorded_module import module_tensors
from dmd2_jax.weights.stand_ins import Record
from dmd2_jax.weights.torch_files import read_torch
from dmd2_jax.weights.unpickle import PickleError

__all__ = ["WEIGHTS", "inception_extractor", "read_inception"]

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""The file of weights, as pytorch-fid publishes it (GitHub release `fid_weights`)."""

NVIDIA_WEIGHTS = "inception-2015-12-05.pkl"
"""The same weights, as NVIDIA publishes them with StyleGAN3."""


def read_inception(path: str | os.PathLike) -> Params:
    """Read the weights of the FID network; nothing in the file is executed.

    NVIDIA's files hold the numbers of pytorch-fid's. Their own way of preparing images is
    `resize="edm"`, whichever file the weights come from.

    Args:
      path: pytorch-fid's `WEIGHTS`, or any file of torch.save with the same state dict; NVIDIA's
        `inception-2015-12-05.pkl`, or the TorchScript program `inception-2015-12-05.pt`.

    Returns:
      The parameters of `networks.inception.InceptionV3`.

    Raises:
      ValueError: if the file is missing, damaged, hostile, or not these weights.
    """
    remedy = f"expected pytorch-fid's {WEIGHTS}, from its GitHub release fid_weights, or NVIDIA's"
    try:
        found = read_torch(path)
    except PickleError as error:
        raise Refused(f"{error} ({remedy} {NVIDIA_WEIGHTS}.)") from error
    try:
        tensors = module_tensors(found) if isinstance(found, Record) else found
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(value, np.ndarray)
            for name, value in tensors.items()
        ):
            raise Refused(
                f"got a {type(tensors).__name__} that is no state dict, {remedy} {NVIDIA_WEIGHTS}."
            )
        return inception_params(torchvision_tensors(tensors))
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error


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
