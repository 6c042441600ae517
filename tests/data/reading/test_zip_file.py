"""Zips from anywhere: read in place, hostile ones refused before a byte is inflated."""

import struct
import zipfile
from pathlib import Path

import pytest

from dmd2_jax.data.reading import zip_file
from dmd2_jax.data.reading.decode import CorruptImageError
from dmd2_jax.data.reading.zip_file import ZipFolder, ZipRefusedError
from tests.data.images import write_zip

LIMIT = 2**22


def open_zip(path: Path) -> ZipFolder:
    return ZipFolder(path, lambda name: not name.endswith("/"), LIMIT)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_returns_each_members_bytes(tmp_path: Path, compression: int) -> None:
    files = {f"folder/{i}.png": bytes([i]) * (100 + i) for i in range(20)} | {"empty": b""}
    it = open_zip(write_zip(tmp_path / "x.zip", files, compression))
    assert it.names == sorted(files)
    assert {name: it.read(name, LIMIT) for name in it.names} == files


def test_names_leave_out_folders_and_what_systems_add(tmp_path: Path) -> None:
    files = {"a/": b"", "a/1": b"x", ".DS_Store": b"", "__MACOSX/a/1": b"", "a/.hidden": b""}
    assert open_zip(write_zip(tmp_path / "x.zip", files)).names == ["a/1"]


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "a\\..\\evil.png", "c:/evil.png"]
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.parent.iterdir())
    path = write_zip(tmp_path / "x.zip", {"good.png": b"x", name: b"x"})
    with pytest.raises(ZipRefusedError, match="stay inside the zip"):
        open_zip(path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]
    assert sorted(tmp_path.parent.iterdir()) == before


def test_a_bomb_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": bytes(2**21)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zip_file.zlib, "decompressobj", None)  # would raise if it were called
    with pytest.raises(ZipRefusedError, match="2,097,152 bytes.*200 times; it may be a zip bomb"):
        open_zip(path)


def test_a_member_above_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZipRefusedError, match="expected at most 4,194,304"):
        open_zip(write_zip(tmp_path / "x.zip", {"1.png": bytes(LIMIT + 1)}))


def patch_size(path: Path, size: int) -> None:
    """Let the directory of a zip of one member declare another inflated size."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    path.write_bytes(content)


def test_a_member_that_claims_more_packed_bytes_than_it_can_have_is_refused(
    tmp_path: Path,
) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x" * 1000})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 20 : entry + 24] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)
    with pytest.raises(ZipRefusedError, match=r"packs 1,000 bytes.*into 4,294,967,294"):
        open_zip(path)


def test_a_member_that_lies_nowhere_is_corrupt(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x" * 1000})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 42 : entry + 46] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    it = open_zip(path)
    with pytest.raises(CorruptImageError, match="no header"):
        it.read("1.png", LIMIT)


@pytest.mark.parametrize("name", [b"1.png", b"notes.txt"])
def test_a_name_that_the_directory_has_wrong_is_noticed(tmp_path: Path, name: bytes) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x" * 1000, "notes.txt": b""})
    content = bytearray(path.read_bytes())
    content[content.rindex(name)] ^= 1
    path.write_bytes(content)

    def read() -> bytes:
        it = ZipFolder(path, lambda name: name.endswith(".png"), LIMIT)
        return it.read(it.names[0], LIMIT)

    with pytest.raises((CorruptImageError, ZipRefusedError), match="the directory has"):
        read()


def test_a_directory_that_lost_members_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {f"{i}.png": b"x" * 100 for i in range(9)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\1\2")
    content[entry + 32] = 200  # a comment that swallows the members after the first
    path.write_bytes(content)
    with pytest.raises(ZipRefusedError, match="expected"):
        open_zip(path)


def test_names_of_more_members_than_two_bytes_count(tmp_path: Path) -> None:
    it = open_zip(write_zip(tmp_path / "x.zip", {f"{i}.png": b"" for i in range(2**16)}))
    assert len(it.names) == 2**16


@pytest.mark.parametrize("declared", [10, 999, 1001, 5000])
def test_a_member_that_inflates_to_another_size_is_corrupt(tmp_path: Path, declared: int) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": bytes(range(250)) * 4}, zipfile.ZIP_DEFLATED)
    patch_size(path, declared)
    it = open_zip(path)
    with pytest.raises(CorruptImageError, match="not the size"):
        it.read("1.png", LIMIT)


def test_a_lying_size_limits_what_is_inflated(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    patch_size(path, 64_000)  # so that the directory looks harmless
    it = open_zip(path)
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(CorruptImageError):
        it.read("1.png", LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_damaged_bytes_are_corrupt(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"a" * 1000, "2.png": b"b" * 1000})
    content = path.read_bytes().replace(b"a" * 1000, b"a" * 500 + b"c" + b"a" * 499)
    path.write_bytes(content)
    it = open_zip(path)
    with pytest.raises(CorruptImageError, match="checksum"):
        it.read("1.png", LIMIT)
    assert it.read("2.png", LIMIT) == b"b" * 1000


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("1.png", b"y")
    with pytest.raises(ZipRefusedError, match=r"two members '1\.png'"):
        open_zip(path)


def test_other_compression_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x" * 50}, zipfile.ZIP_LZMA)
    with pytest.raises(ZipRefusedError, match="by method 14"):
        open_zip(path)


def test_encryption_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ZipRefusedError, match="encrypted"):
        open_zip(path)


@pytest.mark.parametrize("cut", [0, 10, 150])
def test_what_is_no_zip_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_zip(tmp_path / "x.zip", {"1.png": b"x" * 100})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ZipRefusedError, match="expected a zip"):
        open_zip(path)
