"""Classes as people name them, by number or by name, to class numbers."""

import difflib
from collections.abc import Sequence

from dmd2_jax.config.refused import Refused

__all__ = ["chosen_classes"]

_NUMBER = "#"
_NEAREST = 3


def chosen_classes(
    words: Sequence[str | int],
    num_classes: int,
    names: Sequence[str] | None,
    *,
    key: str = "classes",
) -> tuple[int, ...]:
    """Return the numbers of classes.

    Args:
      words: numbers, names, or "#3" for a number that is another class's name too.
      num_classes: how many classes there are.
      names: of the classes in the order of their numbers; None: not known.
      key: what messages call the choice.

    Returns:
      One number a word.

    Raises:
      Refused: if there is no such class, or a word means two.
    """
    if not words:
        raise Refused(f"{key}=[] names none, expected {_expected(num_classes, names)}.")
    return tuple(_number(str(word), num_classes, names, key) for word in words)


def _number(word: str, num_classes: int, names: Sequence[str] | None, key: str) -> int:
    plain = word.removeprefix(_NUMBER)
    by_number = int(plain) if plain.isascii() and plain.isdecimal() else -1
    if not 0 <= by_number < num_classes:
        by_number = -1
    named = names is not None and word in names
    by_name = names.index(word) if names is not None and named else -1
    if -1 not in (by_number, by_name) and by_number != by_name:
        assert names is not None
        raise Refused(
            f"{key}={word} means two: number {word} is {names[by_number]!r}, and the class named "
            f"{word!r} has number {by_name}, expected one; write {_NUMBER}{by_number} or "
            f"{_NUMBER}{by_name}."
        )
    found = max(by_number, by_name)
    if found < 0:
        close = difflib.get_close_matches(word, names or (), n=_NEAREST, cutoff=0.4)
        raise Refused(
            f"{key}={word} is no class, expected {_expected(num_classes, names)}"
            f"{'; the nearest names are ' + ', '.join(map(repr, close)) if close else ''}."
        )
    return found


def _expected(num_classes: int, names: Sequence[str] | None) -> str:
    numbers = f"class numbers in 0..{num_classes - 1}"
    if names is None:
        return f"{numbers} (no names are recorded); leave it away for all"
    return f"{numbers} or their names, such as {names[0]!r}; leave it away for all"
