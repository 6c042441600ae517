"""The pickle machine: Python's own pickles of data come back, and no hostile one runs anything."""

import collections
import contextlib
import io
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.weights.stand_ins import ALLOWED, NumpyArray, Record
from dmd2_jax.weights.torch_files import read_torch
from dmd2_jax.weights.unpickle import Global, PickleError, unpickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(raw: bytes, **options):
    return unpickle(io.BytesIO(raw), ALLOWED, **options)


DATA = {
    "numbers": [0, -1, 255, 2**16, -(2**31), 2**80, -(2**80), 1.5, True, False, None],
    "text": ["", "ascii", "Ünïcode \u2603", "x" * 300],
    "bytes": [b"", b"\x00\xff", b"y" * 300],
    "nested": {"tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), 3: {"set": {1, 2, "a"}}},
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
    "frozen": frozenset({1, 2}),
}


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])  # sets need a constructor by name below 2
def test_unpickle_returns_the_data_that_python_pickled(protocol):
    assert read(pickle.dumps(DATA, protocol)) == DATA


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unpickle_keeps_what_is_shared_and_circular(protocol):
    shared = [1, 2]
    value = {"a": shared, "b": shared}
    value["self"] = value
    back = read(pickle.dumps(value, protocol))
    assert back["a"] is back["b"] and back["self"] is back


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
        np.zeros((0, 2), np.float32),
        np.array([True, False]),
    ],
    ids=["double", "column-major", "big-endian", "empty", "bool"],
)
def test_unpickle_returns_numpy_arrays(array, protocol):
    back = read(pickle.dumps(array, protocol))
    assert isinstance(back, NumpyArray) and back.value.dtype == array.dtype
    np.testing.assert_array_equal(back.value, array)


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_unpickle_turns_numpy_numbers_into_pythons(protocol):
    back = read(pickle.dumps([np.float64(0.5), np.int32(-3)], protocol))
    assert back == [0.5, -3] and [type(v) for v in back] == [float, int]


def test_unpickle_leaves_the_stream_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps(1) + pickle.dumps("two") + b"rest")
    assert [unpickle(stream, {}), unpickle(stream, {}), stream.read()] == [1, "two", b"rest"]


def persistent_object(class_name: str, state: object, source: str = "") -> bytes:
    """Pickle an object as NVIDIA's persistence does."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name}
    body = pickle.dumps({**meta, "state": state}, 2)[2:-1]
    return b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n(" + body + b"tR."


def test_unpickle_keeps_a_persistent_objects_name_and_state():
    record = read(persistent_object("EDMPrecond", {"_init_kwargs": {"label_dim": 10}}))
    assert isinstance(record, Record) and record.class_name == "EDMPrecond"
    assert record.state == {"_init_kwargs": {"label_dim": 10}}


# Hostile pickles -----------------------------------------------------------------------------


class Call:
    """Pickles as the call function(*arguments)."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class State(Call):
    """Pickles as an OrderedDict whose state is the call."""

    def __reduce__(self):
        return collections.OrderedDict, (), Call(self.call[0], *self.call[1])


def shell(marker: Path) -> Call:
    return Call(os.system, f"touch {marker}")


def write_source(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def raw_call(module: str, name: str, *arguments: object) -> bytes:
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + pickle.dumps(arguments, 2)[2:-1] + b"R"


HOSTILE = {
    "os.system": (lambda m: pickle.dumps(shell(m)), "got the global '(posix|nt).system'"),
    "os.system, protocol 0": (lambda m: pickle.dumps(shell(m), 0), "'(posix|nt).system'"),
    "eval": (
        lambda m: pickle.dumps(Call(eval, write_source(m))),
        "got the global 'builtins.eval'",
    ),
    "exec": (
        lambda m: pickle.dumps(Call(exec, write_source(m))),
        "got the global 'builtins.exec'",
    ),
    "nested in a dict": (lambda m: pickle.dumps({"ema": [shell(m)]}), "'(posix|nt).system'"),
    "after good data": (
        lambda m: pickle.dumps([np.zeros(1000), collections.OrderedDict(), shell(m)]),
        "'(posix|nt).system'",
    ),
    "in the state of an allowed object": (
        lambda m: pickle.dumps(State(os.system, f"touch {m}")),
        "'(posix|nt).system'",
    ),
    "in the attributes of a persistent object": (
        lambda m: persistent_object("EDMPrecond", {"_modules": {"model": shell(m)}}),
        "'(posix|nt).system'",
    ),
    "as a dict's key": (lambda m: pickle.dumps({Call(exec, write_source(m)): 1}), "builtins.exec"),
    "by INST": (
        lambda m: f"(S'touch {m}'\nios\nsystem\n.".encode(),
        "got the pickle operation INST",
    ),
    "by OBJ": (
        lambda m: f"(cos\nsystem\nS'touch {m}'\no.".encode(),
        "got the global 'os.system'",
    ),
    "by a newer protocol's names": (
        lambda m: pickle.dumps(shell(m), 4),
        "got the global '(posix|nt).system'",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused_by_name_and_runs_nothing(tmp_path, name):
    marker, file = tmp_path / "marker", tmp_path / "hostile.pkl"
    make, message = HOSTILE[name]
    file.write_bytes(make(marker))
    with pytest.raises(PickleError, match=message) as caught:
        read_torch(file)
    assert not marker.exists()
    assert str(caught.value).startswith(f"weights file {str(file)!r}")


@pytest.mark.parametrize("name", [n for n in HOSTILE if "persistent" not in n])
def test_hostile_pickles_are_live(tmp_path, name):
    # Else the test above would prove nothing.
    marker = tmp_path / "marker"
    with contextlib.suppress(pickle.UnpicklingError, TypeError):  # of the call's result, after it
        pickle.loads(HOSTILE[name][0](marker))
    assert marker.exists()


REFUSED = {
    "getattr": raw_call("builtins", "getattr", 1, "real") + b".",
    "__import__": raw_call("builtins", "__import__", "this") + b".",
    "copyreg.add_extension": raw_call("copyreg", "add_extension", "os", "system", 77) + b".",
    "an attribute of an allowed module": b"ctorch\nload\n)R.",
    "an attribute of an allowed class": b"\x80\x04\x8c\x0bcollections\x8c\x18"
    b"OrderedDict.__init_subcl\x93.",
    "an attribute by dots": b"\x80\x04\x8c\x05torch\x8c\x0c_utils.types\x93.",
    "a global whose name is no text": b"\x80\x04K\x01K\x02\x93.",
    "an extension": b"\x80\x02\x82\x4d.",
    "a long extension": b"\x80\x02\x84\x4d\x00\x00\x00.",
    "a persistent id": b"\x80\x02X\x02\x00\x00\x00osQ.",
    "a persistent id as text": b"Pos\n.",
    "NEWOBJ_EX": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a call of text": b"\x80\x02X\x02\x00\x00\x00os)R.",
    "a call of a type that is never made": b"ctorch\nTensor\n)R.",
    "arguments that are no tuple": b"ccollections\nOrderedDict\n]R.",
    "a state for a global": b"ccollections\nOrderedDict\n}S'__class__'\nK\x01sb.",
    "a state for a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}S'__code__'\nK\x01s\x86b.",
    "a state for a list": b"]}b.",
    "a state that is no dict": persistent_object("X", [])[:-1] + b".",
    "items for a tuple": b"\x80\x02)K\x01a.",
    "items for a record": b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81K\x01K\x02s.",
    "a key of a list": b"}](K\x01eK\x02s.",
    "a key of nested tuples": b"}K\x01\x85\x85K\x02s.",
    "a memo that was never put": b"h\x07.",
    "a stack that is empty": b"0.",
    "a mark that is missing": b"t.",
    "a protocol of the future": b"\x80\x09N.",
    "an unknown operation": b"\xff.",
    "an integer of many digits": b"I" + b"9" * 10_000 + b"\n.",
    "an object array": pickle.dumps(np.array([None, 1], object)),
    "a structured dtype": pickle.dumps(np.zeros(2, [("a", "f4")])),
    "a NumPy number of too few bytes": b"cnumpy.core.multiarray\nscalar\n("
    + raw_call("numpy", "dtype", "f8", False, True)[2:]
    + b"C\x04abcdtR.",
    "a persistent object of another type": raw_call(
        "torch_utils.persistence", "_reconstruct_persistent_obj", {"type": "function"}
    )
    + b".",
}


@pytest.mark.parametrize("name", REFUSED)
def test_unpickle_refuses(name):
    modules, extensions = set(sys.modules), dict(__import__("copyreg")._extension_registry)
    with pytest.raises(PickleError, match="got "):
        read(REFUSED[name])
    assert "this" not in set(sys.modules) - modules
    assert __import__("copyreg")._extension_registry == extensions


def test_unpickle_leaves_the_stand_ins_as_they_are():
    # With Python's reader a state given to a class or a function would change it for good.
    before = {name: (entry.name, entry.call) for name, entry in ALLOWED.items()}
    for name in ALLOWED:
        module, _, attribute = name.rpartition(".")
        for state in (b"}X\x04\x00\x00\x00callK\x01s", b"N}X\x04\x00\x00\x00callK\x01s\x86"):
            with pytest.raises(PickleError, match="got a state"):
                read(f"c{module}\n{attribute}\n".encode() + state + b"b.")
    assert {name: (entry.name, entry.call) for name, entry in ALLOWED.items()} == before


def test_unpickle_never_runs_the_source_of_a_persistent_object(tmp_path):
    marker = tmp_path / "marker"
    record = read(persistent_object("EDMPrecond", {}, source=write_source(marker)))
    assert record.class_name == "EDMPrecond" and not marker.exists()


def test_unpickle_of_a_forbidden_module_does_not_import_it(tmp_path, monkeypatch):
    (tmp_path / "planted_by_a_pickle.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PickleError, match="planted_by_a_pickle.f"):
        read(b"cplanted_by_a_pickle\nf\n)R.")
    assert "planted_by_a_pickle" not in sys.modules


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_unpickle_refuses_a_truncated_pickle(end):
    raw = pickle.dumps(DATA)
    with pytest.raises(PickleError, match="got a damaged pickle"):
        read(raw[: len(raw) * end // 60])


@pytest.mark.parametrize(
    "raw",
    [
        b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",  # BINBYTES8
        b"\x8d" + struct.pack("<Q", 2**62) + b"abc.",  # BINUNICODE8
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",  # LONG4
    ],
    ids=["bytes", "text", "integer"],
)
def test_unpickle_refuses_a_length_beyond_the_file_without_reserving_it(raw):
    with pytest.raises(PickleError, match="got a damaged pickle"):
        read(raw)


def test_unpickle_refuses_too_many_operations(monkeypatch):
    monkeypatch.setattr("dmd2_jax.weights.unpickle._MOST_OPERATIONS", 1000)
    assert read(b"}0" * 499 + b"N.") is None
    with pytest.raises(PickleError, match="more than 1,000 operations"):
        read(b"}0" * 500 + b"N.")


def test_unpickle_shows_hostile_names_on_one_short_line():
    name = b"a\x1b[31m" + b"b" * 5000
    with pytest.raises(PickleError) as caught:
        read(b"c" + name + b"\nf\n.")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


# Tuples in tuples. The text of the first takes the whole stack, that of the second 2^60 bytes.
DEEP = b"N" + b"\x85" * 100_000
DOUBLING = b"N\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60))


@pytest.mark.parametrize("value", [DEEP, DOUBLING], ids=["deep", "doubling"])
@pytest.mark.parametrize(
    "around",
    [b"ctorch\nSize\n(%sK\x01\x86tR.", b"c_codecs\nencode\n(X\x01\x00\x00\x00a%stR.", b"}%sNs."],
    ids=["a size", "an encoding", "a key"],
)
def test_unpickle_refuses_what_cannot_be_shown(around, value):
    with pytest.raises(PickleError, match="got .*a tuple|got a key of type tuple"):
        read(b"\x80\x04" + around.replace(b"%s", value))


def test_unpickle_hands_persistent_ids_to_the_caller():
    assert read(b"\x80\x02K\x07Q.", persistent=lambda identity: identity + 1) == 8


def test_global_is_not_callable_by_python():
    assert not callable(Global("os.system"))
