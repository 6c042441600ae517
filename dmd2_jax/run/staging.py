"""Checkpoints of s3://, which Orbax cannot write to: it writes on this machine, steps go there.

The steps of the bucket are copied into a folder of this machine first; what Orbax adds to it or
removes from it is repeated in the bucket, in the background. A bucket cannot rename, so a step that
is not whole has a mark beside its arrays, which is put first and removed last.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime.fetched import fetched
from dmd2_jax.runtime.integrity import UNFINISHED, step_folders
from dmd2_jax.runtime.places import client_of, path_of, reaching
from dmd2_jax.runtime.platform import user_cache

__all__ = ["Staging", "copied"]

_DAMAGED = "damaged-"


def copied(place: str | os.PathLike) -> Path:
    """Return a folder of this machine with the whole steps of a bucket, which are only read."""
    steps = step_folders(path_of(place))
    folders = [fetched(folder) for folder in steps.values()]
    if not folders:
        return fetched(place)
    root = folders[0].parent
    for folder in root.iterdir():
        if folder.name.isdecimal() and int(folder.name) not in steps:
            shutil.rmtree(folder, ignore_errors=True)
    return root


class Staging:
    """The folder in which Orbax writes, and what is repeated of it in the bucket.

    Its name says which bucket's it is; a process that was killed left it, the next one clears it.
    """

    def __init__(self, place: str | os.PathLike) -> None:
        """Copy the bucket's whole steps, and remove from the bucket those that are not.

        Args:
          place: of the checkpoints, in the bucket.

        Raises:
          Refused: if there are several processes.
          OSError: if the bucket or the disk refuses.
        """
        if jax.process_count() > 1:
            raise Refused(
                f"{place} is to hold checkpoints of {jax.process_count()} processes, expected one, "
                "which writes on its machine before it uploads; choose gs://BUCKET/... or a disk "
                "that all share."
            )
        self.place = path_of(place)
        name = hashlib.blake2b(os.fspath(place).encode(), digest_size=16).hexdigest()
        self.folder = user_cache() / "staging" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._client, self._key = client_of(self.place)
        self._there: set[str] = set()
        whole = {str(step): folder for step, folder in step_folders(self.place).items()}
        for entry in self.place.iterdir() if self.place.is_dir() else ():
            if entry.name in whole:
                # Linked: the copy that readers have needs no room twice.
                target = self.folder / entry.name
                shutil.copytree(fetched(entry), target, copy_function=os.link)
            elif entry.name.isdecimal():
                self._remove(entry.name)
                continue
            elif entry.name.startswith(_DAMAGED):
                (self.folder / entry.name).mkdir()  # so that its name is not given again
            else:
                continue
            self._there.add(entry.name)
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def begin(self, ready: Callable[[], None]) -> None:
        """Repeat in the bucket, in the background, what is new here and what is gone.

        Args:
          ready: returns when the folder is as it is to be, or raises why it never will be.
        """
        self._pending = self._pool.submit(self._repeat, ready)

    def wait(self) -> None:
        """Block until the bucket has what was begun.

        Raises:
          Exception: what `ready` raised, or an OSError if the bucket refuses.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Remove the folder."""
        self._pool.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that the bucket has whole, oldest first."""
        return sorted(int(name) for name in self._there if name.isdecimal())

    def _repeat(self, ready: Callable[[], None]) -> None:
        ready()
        here = {
            folder.name
            for folder in self.folder.iterdir()
            if folder.name.isdecimal() or folder.name.startswith(_DAMAGED)
        }
        for name in sorted(here - self._there):
            self._put(name)
            self._there.add(name)
        for name in sorted(self._there - here):
            self._remove(name)
            self._there.discard(name)

    def _put(self, name: str) -> None:
        mark = f"{self._key}/{name}/{UNFINISHED}"
        files = [file for file in sorted((self.folder / name).rglob("*")) if file.is_file()]
        keys = [f"{self._key}/{file.relative_to(self.folder).as_posix()}" for file in files]
        with reaching(self.place / name):
            self._client.pipe_file(mark, b"")
            self._client.put([str(file) for file in files], keys)
            self._client.rm_file(mark)

    def _remove(self, name: str) -> None:
        mark = f"{self._key}/{name}/{UNFINISHED}"
        with reaching(self.place / name):
            self._client.pipe_file(mark, b"")
            others = [key for key in self._client.find(f"{self._key}/{name}") if key != mark]
            if others:
                self._client.rm(others)
            self._client.rm_file(mark)
