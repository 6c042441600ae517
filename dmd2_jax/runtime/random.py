"""Every random key of a run is a function of (root key, stream name, index).

Nothing stores, splits or returns a key, so a resumed run draws what the uninterrupted one
would have drawn.
"""

import zlib

import jax

from dmd2_jax.typing import Array, Int, Key


def stream_key(root: Key, name: str, index: int | Int[Array, ""] = 0) -> Key:
    """Derive the key of stream `name` at position `index`.

    Args:
      root: the run's key, `jax.random.key(config.seed)`.
      name: the stream, for example "generator" or "data".
      index: turn, cycle or batch number; may be traced.

    Returns:
      A key, independent of the keys of every other (name, index) pair.
    """
    return jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(name.encode())), index)
