"""One owner at a time of what is written to: a run folder, a cache, pairs, samples.

On a disk of this machine the owner holds a lock on the folder's file `.owner`, which the kernel
takes away when the process ends, however it ends. Disks that machines share and buckets have no
lock that all of them see: there the owner renews a lease, `.owner.json`, every few seconds. A lease
that is not renewed while a newcomer watches is nobody's; whose clock is right plays no part.
Readers need neither.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmd2_jax.config.printable import printable
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json, refuse_special
from dmd2_jax.runtime.places import in_bucket, make_folder, path_of
from dmd2_jax.runtime.whole_file import whole_file

try:
    import fcntl
except ImportError:  # Windows, where a lease does
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_free", "holds_nothing", "owned"]

LOCK, LEASE = ".owner", ".owner.json"

_BEATS = 6
"""Renewals that may fail to come before a lease is nobody's."""

_SHARED: tuple[str, ...] = ("9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gfs", "glusterfs")
_SHARED += ("gpfs", "lustre", "ncpfs", "nfs", "ocfs2", "smb", "vboxsf", "virtiofs")
"""How the names of file systems begin that several machines may have, or that another serves."""


@contextlib.contextmanager
def owned(folder: str | os.PathLike) -> Iterator[None]:
    """Have a folder to oneself until the body ends, however it ends.

    Args:
      folder: what is written to, on this machine or in a bucket; made if need be.

    Raises:
      Refused: if another process has it, or it is a file.
      OSError: if the disk or the bucket refuses.
    """
    place = path_of(folder)
    if not in_bucket(folder) and place.exists() and not place.is_dir():
        raise Refused(f"{folder} is a file, expected a folder or nothing; choose another.")
    is_new = not in_bucket(folder) and not place.exists()
    make_folder(folder)
    try:
        with _lease(folder) if _by_lease(folder) else _lock(place):
            yield
    finally:
        if is_new and place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def holds_nothing(folder: Path) -> bool:
    """Return whether there is no such folder, or nothing in it but what says whose it is."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(it.name in (LOCK, LEASE) for it in folder.iterdir())


def check_free(folder: str | os.PathLike) -> None:
    """Refuse a folder that another process has now, leaving it as it is.

    Where there is a lease this watches it for some seconds.

    Raises:
      Refused: if another process has it.
    """
    if _by_lease(folder):
        _watch(folder, _read(path_of(folder) / LEASE))
        return
    path = Path(folder) / LOCK
    if path.exists():
        file = _opened(path, os.O_RDONLY)
        try:
            _try(file, path)
        finally:
            os.close(file)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    while True:
        file = _opened(path, os.O_RDWR | os.O_CREAT)
        try:
            _try(file, path)
            if _is_at(file, path):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    try:
        _say_stale(folder, _read(path))
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_this_process()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _opened(path: Path, how: int) -> int:
    """Open the lock's file, never what a link in its place leads to."""
    refuse_special(path)
    if path.is_symlink() or path.is_dir():
        raise Refused(
            f"{path} is a link or a folder, expected the file that says whose the folder is; "
            "remove it."
        )
    return os.open(path, how | os.O_NOFOLLOW, 0o666)


def _is_at(file: int, path: Path) -> bool:
    """Return whether an open file is still there: who had it before removes it at the end."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _try(file: int, path: Path) -> None:
    """Lock an open file, or say whose it is."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(_taken(path.parent, _read(path))) from None


@contextlib.contextmanager
def _lease(folder: str | os.PathLike) -> Iterator[None]:
    path, mine = path_of(folder) / LEASE, _this_process() | {"lease": secrets.token_hex(8)}
    before = _read(path)
    _watch(folder, before)
    _say_stale(folder, before)
    _renew(path, mine, 0)
    # Of two that come at once the last to write has it; the other sees so when both have written.
    time.sleep(min(_seconds() / 2, 2))
    if (there := _read(path)).get("lease") != mine["lease"]:
        raise Refused(_taken(folder, there))
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, path, mine, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _read(path).get("lease") == mine["lease"]:
            path.unlink(missing_ok=True)


def _beat(
    folder: str | os.PathLike, path: Path, mine: Mapping[str, Any], ended: threading.Event
) -> None:
    """Renew a lease; end the process at once if another one has it: nothing may be written then."""
    beat = 0
    while not ended.wait(_seconds()):
        beat += 1
        try:
            there = _read(path)
            if there and there.get("lease") != mine["lease"]:
                print(
                    f"dmd2: {folder} was taken by {_who(there)} while this process was not heard "
                    "of; it ends here and writes nothing more. Finished checkpoints are intact.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            _renew(path, mine, beat)
        except OSError:  # a disk or a bucket that is away for a moment: the next beat tries again
            continue


def _watch(folder: str | os.PathLike, before: Mapping[str, Any]) -> None:
    """Wait until a lease is renewed, which refuses this process, or has been nobody's for long."""
    if not before:
        return
    wait = _BEATS * _seconds()
    print(
        f"{folder}: {_who(before)} had it last; watching for {wait:g} seconds whether it still "
        "runs.",
        file=sys.stderr,
        flush=True,
    )
    until = time.monotonic() + wait
    while time.monotonic() < until:
        time.sleep(min(_seconds(), 1))
        there = _read(path_of(folder) / LEASE)
        if not there:
            return
        if there != before:
            raise Refused(_taken(folder, there))


def _renew(path: Path, mine: Mapping[str, Any], beat: int) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps({**mine, "beat": beat}))


def _read(path: Path) -> dict[str, Any]:
    """Return what is noted of an owner, {} if there is nothing or it cannot be read."""
    try:
        noted = read_json(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _seconds() -> float:
    """Return the time between two renewals."""
    return float(os.environ.get("DMD2_OWNER_SECONDS", "60")) / _BEATS


def _by_lease(folder: str | os.PathLike) -> bool:
    return in_bucket(folder) or fcntl is None or _kind_of_disk(Path(folder)).startswith(_SHARED)


def _kind_of_disk(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the name of the file system that a folder lies or will lie on; "" if nobody says."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    place, found, kind = folder.resolve(), Path(), ""
    for line in lines:
        _, at, name, *_ = line.split(" ")
        # Blanks in it are written as octal numbers.
        point = Path(at.encode().decode("unicode_escape"))
        if place.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, name
    return kind


def _this_process() -> dict[str, Any]:
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": " ".join([name, *sys.argv[1:2]])[:80],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _who(noted: Mapping[str, Any]) -> str:
    if not noted:
        return "another process"
    host, process, since = (noted.get(key) for key in ("host", "process", "since"))
    return printable(f"process {process} on {host} ({noted.get('command')}, since {since})")


def _taken(folder: str | os.PathLike, noted: Mapping[str, Any]) -> str:
    return (
        f"{folder} is being written to by {_who(noted)}, expected one process at a time; wait for "
        "its end, stop it, or choose another folder."
    )


def _say_stale(folder: str | os.PathLike, noted: Mapping[str, Any]) -> None:
    if noted:
        print(
            f"{folder}: {_who(noted)} ended without letting go of it; going on.",
            file=sys.stderr,
            flush=True,
        )
