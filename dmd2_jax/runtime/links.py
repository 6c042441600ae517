"""Symbolic links in folders that others made: they may lead to files that are none of theirs."""

import os
from pathlib import Path

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.places import in_bucket

__all__ = ["check_inside"]


def check_inside(file: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Refuse a file of a folder that is a link out of it.

    The cache of the Hugging Face Hub is made of links: there `snapshots/REVISION` may lead to the
    repository's own `blobs`. The folder itself may be a link.

    Args:
      file: what is about to be read or copied; it need not be there.
      folder: that it belongs to.

    Raises:
      Refused: naming the link and where it leads.
    """
    if in_bucket(file):
        return
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    snapshots = next((parent for parent in root.parents if parent.name == "snapshots"), None)
    own = (
        [root] if snapshots is None else [root, Path(os.path.realpath(snapshots.parent / "blobs"))]
    )
    if not any(real.is_relative_to(place) for place in own):
        raise Refused(
            f"{os.fspath(file)} is a link to {real}, outside of {os.fspath(folder)}, expected a "
            "file of that folder, or of the Hub's cache that it is in; put the file in its place."
        )
