"""Texts from bytes that may be anything: UTF-8 lines, and JSON objects, one a line."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dmd2_jax.config.refused import Refused

KEYS = ("prompt", "text", "caption")
"""What a text may be called; the first of these that there is counts."""


def text_lines(data: bytes, place: str) -> Iterator[tuple[str, str]]:
    """Yield (place and number of the line, the line) of every line that is not blank.

    Args:
      data: UTF-8, with or without a byte order mark.
      place: the file, for messages.

    Raises:
      ValueError: naming the first line that is not UTF-8.
    """
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{place} line {number}"
        text = utf8(line, where).strip()
        if text:
            yield where, text


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
    return entry[key].strip()


def text_key(names: Sequence[str], where: str) -> str:
    """Return the first of `KEYS` among some names.

    Raises:
      ValueError: if there is none.
    """
    for key in KEYS:
        if key in names:
            return key
    raise Refused(f"{where} has {list(names)!r:.200}, expected one of {list(KEYS)}; rename one.")


def utf8(data: bytes, where: str) -> str:
    """Decode bytes.

    Raises:
      ValueError: if they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(
            f"{where} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}), "
            "expected UTF-8; convert the file (iconv -f latin1 -t utf-8)."
        ) from error
