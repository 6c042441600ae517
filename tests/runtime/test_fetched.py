from pathlib import Path

import fsspec
import pytest

from dmd2_jax.config.refused import Missing, Refused
from dmd2_jax.runtime import fetched as room
from dmd2_jax.runtime.fetched import fetched


class Bucket(type(fsspec.filesystem("memory"))):
    """A bucket in memory, which numbers what is written to it and counts what is read of it."""

    cachable = False
    store, pseudo_dirs = {}, [""]

    def __init__(self):
        super().__init__()
        self.numbers, self.read = {}, 0

    def put(self, name: str, content: bytes) -> None:
        self.pipe_file(f"/{name}", content)
        self.numbers[f"/{name}"] = self.numbers.get(f"/{name}", 0) + 1

    def find(self, path, **options):
        found = super().find(f"/{path}", **options).items()
        return {n.lstrip("/"): i | {"generation": self.numbers[n]} for n, i in found}

    def get(self, names, files, **options):
        for name, file in zip(names, files, strict=True):
            self.read += 1
            Path(file).write_bytes(self.cat_file(f"/{name}"))


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = Bucket()
    bucket.store.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(room, "check_place", lambda path: None)
    monkeypatch.setattr(room, "client_of", lambda path: (bucket, str(path).removeprefix("gs://")))
    bucket.put("b/set/a/1.png", b"one")
    bucket.put("b/set/2.png", b"two")
    return bucket


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_fetched_is_a_path_of_this_machine_itself(tmp_path):
    assert fetched(tmp_path / "none") == tmp_path / "none"


def test_fetched_copies_a_file_and_a_folder(bucket):
    assert fetched("gs://b/set/2.png").read_bytes() == b"two"
    assert contents(fetched("gs://b/set/")) == {"a/1.png": b"one", "2.png": b"two"}
    assert bucket.read == 2


def test_fetched_reads_again_only_what_has_changed(bucket):
    fetched("gs://b/set")
    bucket.put("b/set/2.png", b"TWO")
    assert contents(fetched("gs://b/set")) == {"a/1.png": b"one", "2.png": b"TWO"}
    assert fetched("gs://b/set/2.png").read_bytes() == b"TWO"
    assert bucket.read == 3


def test_fetched_drops_what_is_no_longer_there(bucket):
    fetched("gs://b/set")
    bucket.rm_file("/b/set/a/1.png")
    assert contents(fetched("gs://b/set")) == {"2.png": b"two"}


def test_fetched_copies_again_what_was_cut_short(bucket):
    fetched("gs://b/set/2.png").unlink()
    assert fetched("gs://b/set/2.png").read_bytes() == b"two"


def test_fetched_refuses_what_is_not_there(bucket):
    with pytest.raises(Missing, match="gs://b/none is not there"):
        fetched("gs://b/none")


def test_fetched_refuses_a_name_that_leads_elsewhere(bucket, monkeypatch):
    info = {"type": "file", "size": 1, "generation": 1}
    monkeypatch.setattr(bucket, "find", lambda path, detail: {"b/set/../../../x": info})
    with pytest.raises(Refused, match="expected names that are paths"):
        fetched("gs://b/set")


def test_fetched_refuses_what_has_no_room(bucket, monkeypatch):
    usage = type("Usage", (), {"free": 1})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Refused, match=r"free some, or set XDG_CACHE_HOME"):
        fetched("gs://b/set")
