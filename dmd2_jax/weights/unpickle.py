"""Read the data in a pickle without running the program that a pickle is.

Python's own reader imports whatever the file names and calls it, so that opening a file of weights
from elsewhere can run any code. The machine here knows the part of the format that builds lists,
dicts and numbers. It imports nothing: a name that the pickle uses must be in a table of `Global`s
that the caller hands in, and what is then called is the caller's stand-in. Everything else is
refused by name.
"""

import contextlib
import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from dmd2_jax.config.refused import Refused

__all__ = ["Buildable", "Global", "PickleError", "shown", "unpickle"]

_MOST_OPERATIONS = 10_000_000
"""Each may take some 100 bytes of memory; the largest published networks need 1 % of them."""

_NEWEST_PROTOCOL = 5
_LONGEST_NAME = 120

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
"""Operations that push their argument, by pickletools' names."""


class PickleError(Refused):
    """A pickle is damaged, or holds what is not data."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle may use.

    Attributes:
      name: "module.attribute", as the pickle spells it.
      call: what happens when the pickle calls it or makes an instance of it; None: refused.
    """

    name: str
    call: Callable[..., Any] | None = None


class Buildable:
    """A stand-in for an object whose state the pickle gives after making it."""

    def build(self, state: Any) -> None:
        """Take the state, or raise ValueError."""
        raise Refused(f"state of type {type(state).__name__} for {type(self).__name__}")


def unpickle(
    stream: BinaryIO,
    allowed: Mapping[str, Global],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Read one pickle.

    Args:
      stream: in memory or memory-mapped, so that a read never asks for more than there is; left
        behind the pickle's end.
      allowed: what the pickle may name, by name.
      persistent: turns a persistent id into an object; None refuses them.

    Returns:
      The object: Python data, what the stand-ins returned, and `Global`s that were not called.

    Raises:
      PickleError: if the pickle is damaged, names anything else, or is of absurd size.
    """
    machine = _Machine(allowed, persistent)
    position = 0
    try:
        for count, (opcode, argument, at) in enumerate(pickletools.genops(stream)):
            position = at or 0
            if count >= _MOST_OPERATIONS:
                raise PickleError(f"got more than {_MOST_OPERATIONS:,} operations, expected fewer")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PickleError as error:
        raise PickleError(f"{error} (at byte {position})") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise PickleError(
            f"got a damaged pickle ({type(error).__name__}: {shown(error)}) at byte {position}, "
            "expected a complete one"
        ) from None
    except MemoryError:
        raise PickleError(
            f"got a pickle that asks for too much memory at byte {position}"
        ) from None
    raise AssertionError("pickletools.genops ends with STOP or raises")


def shown(value: Any) -> str:
    """Return text of a hostile file for a message: one printable line of limited length.

    Of a container only the kind is told: its text can be larger than memory.
    """
    text = f"a {type(value).__name__}"
    if value is None or isinstance(value, str | bytes | int | float | Exception):
        with contextlib.suppress(ValueError):  # an integer of more digits than Python prints
            text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "..."


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(
        self, allowed: Mapping[str, Global], persistent: Callable[[Any], Any] | None
    ) -> None:
        self._allowed = allowed
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Take the top of the stack."""
        return self._stack.pop()

    def step(self, name: str, argument: Any) -> None:
        """Execute one operation, by pickletools' name of it."""
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        else:
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise PickleError(f"got the pickle operation {name}, expected plain data")
            operation(argument)

    def _proto(self, version: int) -> None:
        if version > _NEWEST_PROTOCOL:
            raise PickleError(f"got pickle protocol {version}, expected 0..{_NEWEST_PROTOCOL}")

    def _frame(self, _: int) -> None:
        pass  # a hint to readers that buffer

    def _mark(self, _: None) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def _dup(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    # Containers ------------------------------------------------------------------------------

    def _empty_list(self, _: None) -> None:
        self._stack.append([])

    def _empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _empty_set(self, _: None) -> None:
        self._stack.append(set())

    def _list(self, _: None) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def _tuple(self, _: None) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _tuple1(self, _: None) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _tuple2(self, _: None) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _tuple3(self, _: None) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _dict(self, _: None) -> None:
        items, target = self._since_mark(), dict[Any, Any]()
        _fill(target, items)
        self._stack.append(target)

    def _frozenset(self, _: None) -> None:
        items = self._since_mark()
        self._stack.append(frozenset(_key(item) for item in items))

    def _append(self, _: None) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _appends(self, _: None) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _fill(self._top(dict), [key, value])

    def _setitems(self, _: None) -> None:
        items = self._since_mark()
        _fill(self._top(dict), items)

    def _additems(self, _: None) -> None:
        items = self._since_mark()
        self._top(set).update(_key(item) for item in items)

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if type(top) is not kind:
            raise PickleError(f"got items for a {type(top).__name__}, expected a {kind.__name__}")
        return top

    # The memo --------------------------------------------------------------------------------

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    # Names and calls -------------------------------------------------------------------------

    def _global(self, names: str) -> None:
        module, _, attribute = names.partition(" ")
        self._stack.append(self._find(module, attribute))

    def _stack_global(self, _: None) -> None:
        attribute, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(module, attribute))

    def _find(self, module: Any, attribute: Any) -> Global:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise PickleError("got a global whose name is no text, expected module and attribute")
        name = f"{module}.{attribute}"
        if name not in self._allowed:
            raise PickleError(
                f"got the global {shown(name)!r}, expected tensors and constructor arguments alone"
            )
        return self._allowed[name]

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global) or function.call is None:
            raise PickleError(f"got a call of {_called(function)}, expected data")
        if not isinstance(arguments, tuple):
            raise PickleError(f"got a call of {function.name} without a tuple of arguments")
        self._stack.append(function.call(*arguments))

    _newobj = _reduce

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        elif type(target) is not dict:
            raise PickleError(f"got a state for {_called(target)}, expected one for an object")
        # Else the attributes of an OrderedDict, as of torch's state dicts: no tensors, not kept.

    def _binpersid(self, _: None) -> None:
        identity = self._stack.pop()
        if self._persistent is None:
            raise PickleError("got a persistent id, expected none in this kind of file")
        self._stack.append(self._persistent(identity))


def _called(value: Any) -> str:
    return shown(value.name) if isinstance(value, Global) else f"a {type(value).__name__}"


def _fill(target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise PickleError("got a key without a value, expected pairs")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


def _key(value: Any) -> Any:
    """Return a dict's key or set's item; hashing deeper ones would recurse without a bound.

    A class is its name: that is a key in the .ckpt files of pytorch_lightning.
    """
    if isinstance(value, Global) and value.call is None:
        return value.name
    items = value if type(value) is tuple else (value,)
    if all(item is None or type(item) in (str, bytes, int, float, bool) for item in items):
        return value
    raise PickleError(f"got a key of type {type(value).__name__}, expected text or a number")
