"""How a cache's shards are filled: what both kinds of `dmd2 cache` do around their examples."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dmd2_jax.data.reading.sealed_shards import ShardFolder, claim
from dmd2_jax.run.folder import check_free_space
from dmd2_jax.runtime.devices import say_devices
from dmd2_jax.runtime.owner import check_free, owned
from dmd2_jax.runtime.preemption import Interrupted
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.runtime.whole_file import clear_partial

__all__ = ["Filling", "batch_mesh", "fill"]


class Filling(NamedTuple):
    """What is cached, opened and checked.

    Attributes:
      plan: everything that decides what is written.
      shard_bytes: how large each shard will be.
      describe: (folder, bytes to write) -> what a dry run prints.
      write: writes the shards that are not there yet, then what seals them.
      say: folder -> what is printed when all is written.
    """

    plan: Mapping[str, Any]
    shard_bytes: Sequence[int]
    describe: Callable[[ShardFolder, int], str]
    write: Callable[[ShardFolder], None]
    say: Callable[[ShardFolder], str]


def fill(work: Filling, out: str, *, dry_run: bool) -> str:
    """Write the shards that are not there yet, or say what would be written.

    Args:
      work: what is cached.
      out: a folder that is new, or was begun with the same plan.
      dry_run: write nothing.

    Returns:
      What was written, or would be.

    Raises:
      Refused: if the folder is another cache's.
      Interrupted: at Ctrl-C.
      OSError: if the disk refuses.
    """
    if dry_run:
        check_free(out)
        return _fill(work, out, dry_run=True)
    with owned(out):
        return _fill(work, out, dry_run=False)


def _fill(work: Filling, out: str, *, dry_run: bool) -> str:
    sizes = work.shard_bytes
    folder = claim(out, work.plan, len(sizes))
    missing = sum(size for n, size in enumerate(sizes) if n not in folder.finished)
    check_free_space(out, missing, "the cache")
    if dry_run:
        return work.describe(folder, missing)
    if folder.complete:
        folder.clear()
        return work.say(folder)
    if folder.finished:
        print(f"{out}: {len(folder.finished)} of {len(sizes)} shards are there.", flush=True)
    clear_partial(folder.folder)
    try:
        work.write(folder)
    except KeyboardInterrupt:
        done = f"{len(folder.finished)} of {len(sizes)} shards are written"
        raise Interrupted(f"{done}; the same command again goes on.", 130) from None
    return work.say(folder)


def batch_mesh(batch_size: int) -> Mesh:
    """Return a mesh of as many of this machine's devices as divide the batch, and say them."""
    number = math.gcd(batch_size, jax.local_device_count())
    mesh = make_mesh({"data": number, "fsdp": 1, "tensor": 1}, jax.local_devices()[:number])
    say_devices(mesh.devices.flat)
    return mesh
