"""Files of the Hugging Face Hub by path: hf://owner/repository/folder/file[@revision].

The library huggingface_hub downloads, caches (HF_HOME) and obeys HF_HUB_OFFLINE; it is needed only
where such a path is given.
"""

import functools
import re
from pathlib import Path

from dmd2_jax.config.refused import Refused, lacks

__all__ = ["HubError", "fetch", "is_hub_path"]

_SCHEME = "hf://"
_EXAMPLE = "hf://owner/repository/model.safetensors@main"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class HubError(Refused):
    """A file of the Hub cannot be had."""


def is_hub_path(path: str) -> bool:
    """Return whether a path names a file of the Hub."""
    return path.startswith(_SCHEME)


@functools.cache
def fetch(path: str) -> Path:
    """Return a local copy of a file of the Hub, from the cache or the network.

    A process asks once for a path: it works with one file where a branch moves meanwhile.

    Args:
      path: hf://owner/repository/file, the file in a folder or not, with or without @revision.

    Returns:
      The file in the cache.

    Raises:
      HubError: if the path is malformed, huggingface_hub is not installed, or the file is neither
        in the cache nor to be downloaded; the message says which file to fetch by hand.
    """
    owner, repository, name, revision = _parse(path)
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"{lacks(path, 'huggingface_hub', 'hub')}, or download {name} of "
            f"{owner}/{repository} by hand and give its path."
        ) from error
    try:
        file = huggingface_hub.hf_hub_download(f"{owner}/{repository}", name, revision=revision)
    # Its errors have no common base: HTTP, OS, validation and its own ones.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(
            f"{path} is not in the cache and cannot be downloaded ({type(error).__name__}: "
            f"{reason}), expected a file that exists and a network that reaches the Hub (unset "
            f"HF_HUB_OFFLINE; log in for a gated one); or download {name} of {owner}/{repository}, "
            f"revision {revision or 'main'}, by hand and give its path."
        ) from error
    return Path(file)


def _parse(path: str) -> tuple[str, str, str, str | None]:
    """Return (owner, repository, file, revision or None)."""
    address, at, revision = path.removeprefix(_SCHEME).partition("@")
    parts = address.split("/")
    well_formed = len(parts) >= 3 and all(_PART.fullmatch(part) for part in parts)
    if not well_formed or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise HubError(f"{path!r} is no path of the Hub, expected one like {_EXAMPLE}; correct it.")
    return parts[0], parts[1], "/".join(parts[2:]), revision or None
