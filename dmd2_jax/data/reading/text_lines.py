"""Lines of text from bytes that may be anything, and JSON objects, one a line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import check_text, decode_text

KEYS = ("prompt", "text", "caption")
"""What a text may be called; the first of these that there is counts."""


def text_lines(data: bytes, place: str) -> Iterator[tuple[str, str]]:
    """Yield (place and number of the line, the line) of every line that is not blank.

    Args:
      data: see `decode_text`; lines end as on any system.
      place: the file, for messages.

    Raises:
      ValueError: naming the first line that is no text.
    """
    text = decode_text(data, place, lines=True).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        # A mark amid a file stands where another file was joined to it.
        if line := line.strip().lstrip("\ufeff").strip():
            yield f"{place} line {number}", line


def json_lines(data: bytes, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place and number of the line, the object) of every line that is not blank.

    Raises:
      ValueError: naming the first line that is no JSON object.
    """
    for where, line in text_lines(data, place):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused(
                f"{where} is no JSON ({error}), expected an object like "
                '{"prompt": "a red fox"}; correct it.'
            ) from error
        if not isinstance(entry, dict):
            raise Refused(
                f"{where} is {line[:40]!r}, expected an object like "
                '{"prompt": "a red fox"}; correct it.'
            )
        yield where, entry


def text_of(entry: Mapping[str, Any], where: str) -> str:
    """Return an entry's text, stripped.

    Args:
      entry: with one of `KEYS`.
      where: the file and line, for messages.

    Raises:
      ValueError: if it has none of them, or no string there.
    """
    key = text_key(list(entry), where)
    if not isinstance(entry[key], str):
        raise Refused(
            f"{where} has {key} = {entry[key]!r:.60}, expected a text; put it into quotes."
        )
    return check_text(entry[key], where).strip()


def text_key(names: Sequence[str], where: str) -> str:
    """Return the first of `KEYS` among some names.

    Raises:
      ValueError: if there is none.
    """
    for key in KEYS:
        if key in names:
            return key
    raise Refused(f"{where} has {list(names)!r:.200}, expected one of {list(KEYS)}; rename one.")
