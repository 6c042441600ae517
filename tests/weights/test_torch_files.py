"""Files of real torch, in all three containers, and hostile ones; the writer against real torch."""

import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dmd2_jax.weights.recorded_module import module_tensors
from dmd2_jax.weights.stand_ins import Record
from dmd2_jax.weights.torch_files import read_torch, write_torch
from dmd2_jax.weights.unpickle import PickleError
from tests.weights import make

FILES = ("tensors.pth", "tensors_legacy.pth", "tensors.pkl")


@pytest.mark.parametrize("name", FILES)
def test_read_torch_returns_the_tensors_that_torch_saved(name):
    tensors, expected = read_torch(make.HERE / name), make.examples()
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == array.dtype, key
        np.testing.assert_array_equal(tensors[key], array, err_msg=key)


@pytest.mark.parametrize("name", FILES)
def test_read_torch_views_one_storage_where_torch_did(name):
    tensors = read_torch(make.HERE / name)
    shared = np.shares_memory(tensors["transposed"], tensors["column"])
    # pickle.dump writes the storage once for each tensor.
    assert shared == (name != "tensors.pkl")


def test_read_torch_reads_a_program_and_leaves_its_code():
    program = read_torch(make.HERE / "program.pt")
    assert isinstance(program, Record) and program.is_scripted
    layer = program.state["layers"].state["mixed"].state["tower"].state["conv_1"]
    assert layer.state["padding"] == [0, 3] and layer.state["stride"] == 1
    found, expected = module_tensors(program), make.program_tensors()
    assert sorted(found) == sorted(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_read_torch_refuses_a_program_that_names_what_is_no_class_of_its_own(tmp_path):
    raw = archive_of(b"\x80\x02c__torch__\nNet\n)\x81}X\x01\0\0\0acos\nsystem\nsb.")
    refused(tmp_path, raw, "got the global 'os.system'")


@pytest.mark.parametrize("scripted", [True, False], ids=["scripted", "traced"])
def test_read_torch_reads_programs_of_the_installed_torch(tmp_path, scripted):
    torch = pytest.importorskip("torch")
    program = make.program()
    if not scripted:
        program = torch.jit.trace(program, torch.zeros(1, 3, 8, 8))
    program.save(tmp_path / "x.pt")
    found = module_tensors(read_torch(tmp_path / "x.pt"))
    for key, array in make.program_tensors().items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_fixtures_are_small():
    assert sum(file.stat().st_size for file in make.HERE.glob("*.p[kt]*")) < 100_000


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_read_torch_reads_what_the_installed_torch_saves(tmp_path, old):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2))
    value = {"net": module, "step": 7, "tensors": make.torch_examples(), "size": torch.Size([2])}
    torch.save(value, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    back = read_torch(tmp_path / "x.pth")
    assert isinstance(back["net"], Record) and back["step"] == 7 and back["size"] == (2,)
    np.testing.assert_array_equal(
        back["net"].state["_modules"]["0"].state["_parameters"]["weight"],
        module[0].weight.detach().numpy(),
    )
    for key, array in make.examples().items():
        np.testing.assert_array_equal(back["tensors"][key], array, err_msg=key)


def test_torch_load_reads_what_write_torch_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = make.examples()
    write_torch(arrays, tmp_path / "x.bin")
    tensors = torch.load(tmp_path / "x.bin", weights_only=True)
    assert list(tensors) == list(arrays)
    for key, expected in make.torch_examples().items():
        assert tensors[key].dtype == expected.dtype, key
        assert tensors[key].is_contiguous() and torch.equal(tensors[key], expected), key


def test_torch_load_maps_what_write_torch_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    write_torch({"x": np.arange(5.0)}, tmp_path / "x.bin")
    tensors = torch.load(tmp_path / "x.bin", weights_only=True, mmap=True)
    assert tensors["x"].tolist() == [0, 1, 2, 3, 4]


def test_read_torch_inverts_write_torch(tmp_path):
    arrays = make.examples()
    write_torch(arrays, tmp_path / "x.bin")
    back = read_torch(tmp_path / "x.bin")
    assert list(back) == list(arrays)
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype and back[key].shape == array.shape
        assert back[key].tobytes() == array.tobytes()


def test_write_torch_gives_equal_weights_equal_bytes(tmp_path):
    for name in ("a.bin", "b.bin"):
        write_torch({"x": np.arange(5.0)}, tmp_path / name)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_write_torch_aligns_the_numbers(tmp_path):
    write_torch({"x": np.array([1.25e7]), "y": np.array([3.5e9])}, tmp_path / "x.bin")
    raw = (tmp_path / "x.bin").read_bytes()
    assert [raw.index(struct.pack("<d", v)) % 64 for v in (1.25e7, 3.5e9)] == [0, 0]


def test_write_torch_refuses_numbers_that_torch_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="'x': dtype\\('complex64'\\).*convert them to float32"):
        write_torch({"x": np.zeros(2, np.complex64)}, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []


def test_write_torch_leaves_the_old_file_when_the_disk_refuses(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"
    write_torch({"x": np.zeros(2)}, path)
    before = path.read_bytes()

    def refuse(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_torch({"x": np.ones(3)}, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# Hostile files -------------------------------------------------------------------------------


class Shell:
    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tensor_pickle(
    kind: str = "torch FloatStorage",
    key: str = "0",
    count: int = 4,
    offset: int = 0,
    size: tuple = (4,),
    stride: tuple = (1,),
) -> bytes:
    """Return the pickle of one tensor, as a zip's data.pkl has it."""
    module, name = kind.split()
    identity = [b"(", pickle.dumps("storage", 2)[2:-1], f"c{module}\n{name}\n".encode()]
    identity += [pickle.dumps(value, 2)[2:-1] for value in (key, "cpu", count)]
    parts = [pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride, False, None)]
    call = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return b"\x80\x02" + call + b"".join(identity) + b"tQ" + b"".join(parts) + b"tR."


NUMBERS = np.arange(4, dtype=np.float32).tobytes()


def archive_of(pickled: bytes, **more: bytes) -> bytes:
    return zipped({"a/data.pkl": pickled, "a/data/0": NUMBERS, **more})


def refused(folder: Path, raw: bytes, message: str, name: str = "x.bin") -> None:
    """Check that reading these bytes fails with this message, touching nothing else."""
    path = folder / name
    path.write_bytes(raw)
    with pytest.raises(PickleError, match=message) as caught:
        read_torch(path)
    assert str(caught.value).startswith(f"weights file {str(path)!r}")
    assert list(folder.iterdir()) == [path]


def test_read_torch_refuses_a_zip_whose_pickle_runs_a_command(tmp_path):
    marker = tmp_path / "marker"
    pickled = pickle.dumps({"x": Shell(marker)}, 2)
    refused(tmp_path, archive_of(pickled), "got the global '(posix|nt).system'")


def load_from_bytes(raw: bytes) -> bytes:
    return (
        b"\x80\x03ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(raw))
        + raw
        + b"\x85R."
    )


def legacy(pickled: bytes, keys: object = (), after: bytes = b"") -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b"".join(head) + pickled + pickle.dumps(list(keys), 2) + after


def test_read_torch_refuses_a_storage_whose_bytes_run_a_command(tmp_path):
    payload = legacy(pickle.dumps(Shell(tmp_path / "marker"), 2))
    refused(tmp_path, load_from_bytes(payload), "got the global '(posix|nt).system'", "x.pkl")


def test_read_torch_refuses_a_storage_within_a_storage(tmp_path):
    # Each layer costs a level of recursion, so a file of a few MB could have ended the process.
    raw = load_from_bytes(load_from_bytes(b"N."))
    refused(tmp_path, raw, "got the global 'torch.storage._load_from_bytes'", "x.pkl")


def test_read_torch_refuses_a_legacy_file_that_runs_a_command(tmp_path):
    pickled = pickle.dumps(Shell(tmp_path / "marker"), 2)
    refused(tmp_path, legacy(pickled), "got the global '(posix|nt).system'", "x.pth")


HOSTILE_ZIPS = {
    "a path above": (
        lambda: archive_of(b"N.", **{"../../escaped": b"x"}),
        r"got the zip entry '../../escaped'",
    ),
    "an absolute path": (lambda: archive_of(b"N.", **{"/escaped": b"x"}), "zip entry '/escaped'"),
    "a key that is a path": (
        lambda: archive_of(tensor_pickle(key="../../escaped")),
        "got the storage '../../escaped'",
    ),
    "a bomb": (
        lambda: zipped({"a/data.pkl": b"N.", "a/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
        "it may be a zip bomb",
    ),
    "no pickle": (lambda: zipped({"a/data/0": b""}), "got a zip with 0 NAME/data.pkl"),
    "two pickles": (
        lambda: archive_of(b"N.", **{"b/data.pkl": b"N."}),
        "got a zip with 2 NAME/data.pkl",
    ),
    "numbers of a big-endian machine": (
        lambda: archive_of(b"N.", **{"a/byteorder": b"big"}),
        "byte order b'big'",
    ),
    "a storage that is not there": (
        lambda: archive_of(tensor_pickle(key="1")),
        "got no 'a/data/1' of 4 numbers of float32",
    ),
    "a storage of another size": (
        lambda: archive_of(tensor_pickle(count=5)),
        "got no 'a/data/0' of 5 numbers",
    ),
    "a storage of objects": (
        lambda: archive_of(tensor_pickle(kind="torch Tensor")),
        "got a storage of unknown kind",
    ),
    "a tensor beyond its storage": (
        lambda: archive_of(tensor_pickle(offset=1)),
        r"got a tensor of sizes \(4,\), strides \(1,\), offset 1 in a storage of 4 numbers",
    ),
    "a stride beyond the storage": (lambda: archive_of(tensor_pickle(stride=(2,))), "lies within"),
    "a negative stride": (lambda: archive_of(tensor_pickle(stride=(-1,))), "got the size -1"),
    "a negative offset": (lambda: archive_of(tensor_pickle(offset=-1)), "got the size -1"),
    "a tensor of a terabyte": (
        lambda: archive_of(tensor_pickle(size=(2**40,), stride=(0,))),
        "lies within",
    ),
    "sizes whose product overflows": (
        lambda: archive_of(tensor_pickle(size=(2**33, 2**33), stride=(0, 0))),
        "lies within",
    ),
    "sizes without strides": (lambda: archive_of(tensor_pickle(stride=())), "as many of each"),
    "sizes that are no numbers": (
        lambda: archive_of(tensor_pickle(size=("4",))),
        "got the size 4, expected a number",
    ),
}


@pytest.mark.parametrize("name", HOSTILE_ZIPS)
def test_read_torch_refuses_a_zip_with(tmp_path, name):
    make_zip, message = HOSTILE_ZIPS[name]
    refused(tmp_path, make_zip(), message)


def test_tensor_pickle_is_one_that_is_read(tmp_path):
    # Else the refusals above would prove nothing.
    (tmp_path / "x.bin").write_bytes(archive_of(tensor_pickle(offset=1, size=(3,))))
    assert read_torch(tmp_path / "x.bin").tolist() == [1, 2, 3]


def test_read_torch_refuses_entries_that_share_bytes(tmp_path):
    # Stored entries over one another add up to more than the file: a bomb without compression.
    raw = bytearray(zipped({"a/data.pkl": b"N.", "a/data/0": bytes(1000), "a/data/1": b""}))
    entry = raw.index(b"a/data/1", raw.index(b"PK\x01\x02")) - 46
    first = raw.index(b"a/data/0", raw.index(b"PK\x01\x02")) - 46
    raw[entry + 20 : entry + 28] = raw[first + 20 : first + 28]  # both sizes
    refused(tmp_path, bytes(raw), "it may be a zip bomb")


def test_read_torch_refuses_an_encrypted_zip(tmp_path):
    raw = bytearray(zipped({"a/data.pkl": b"N."}))
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    refused(tmp_path, bytes(raw), "cannot be read .*encrypted")


def test_read_torch_refuses_a_flipped_bit_in_a_zip(tmp_path):
    raw = bytearray(archive_of(tensor_pickle()))
    raw[raw.index(NUMBERS) + 5] ^= 1
    refused(tmp_path, bytes(raw), "Bad CRC-32")


@pytest.mark.parametrize(
    "pickled, keys, after, message",
    [
        (tensor_pickle(count=10**12), ["0"], b"", "got a storage of 1,000,000,000,000 numbers"),
        (tensor_pickle(), [], NUMBERS, "got other storages than the object uses"),
        (tensor_pickle(), ["0"], struct.pack("<q", 5) + NUMBERS, "got a truncated storage"),
        (tensor_pickle(), ["0"], struct.pack("<q", 4) + NUMBERS[:-1], "got a truncated storage"),
    ],
    ids=["huge", "unused", "another count", "truncated"],
)
def test_read_torch_refuses_a_legacy_storage_that_is(tmp_path, pickled, keys, after, message):
    refused(tmp_path, legacy(pickled, keys, after), message, "x.pth")


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_legacy.pth", "tensors.pkl", "edm.pkl"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_read_torch_refuses_a_truncated_file(tmp_path, name, part):
    raw = (make.HERE / name).read_bytes()
    refused(tmp_path, raw[: int(len(raw) * part)], "is refused|cannot be read", name)


@pytest.mark.parametrize(
    "raw",
    [b"<!DOCTYPE html><html>", b"version https://git-lfs", b"\x1f\x8b\x08gzip", b"PK\x03\x04"],
    ids=["html", "lfs", "gzip", "cut zip"],
)
def test_read_torch_refuses_what_is_no_file_of_weights(tmp_path, raw):
    refused(tmp_path, raw, "is refused|cannot be read")


def test_read_torch_names_a_missing_file(tmp_path):
    with pytest.raises(PickleError, match=re.escape("nothing.bin' cannot be read")):
        read_torch(tmp_path / "nothing.bin")


def test_read_torch_flipped_bits_are_refused_or_harmless(tmp_path):
    raw, random = (make.HERE / "tensors.pkl").read_bytes(), np.random.RandomState(0)
    path, results = tmp_path / "x.pkl", []
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[random.randint(len(raw))] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            results.append(type(read_torch(path)))
        except PickleError:  # any other error, or a call, would end the test
            results.append(PickleError)
    assert results.count(PickleError) > 50


def test_read_torch_keeps_bfloat16(tmp_path):
    write_torch({"x": np.array([1.5], ml_dtypes.bfloat16)}, tmp_path / "x.bin")
    assert read_torch(tmp_path / "x.bin")["x"].dtype == ml_dtypes.bfloat16
