"""Text of files that may come from anywhere: read rightly, or refused by name."""

import codecs
import json
import os
from pathlib import Path
from typing import Any

from dmd2_jax.config.refused import Refused

__all__ = ["check_text", "decode_text", "read_json", "read_text", "refuse_special"]

_MOST_BYTES = 2**28  # of a text file; the largest that is known, a tokenizer's, has 2**25

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes, where: str, *, lines: bool = False) -> str:
    """Return the text of a file, without its byte-order mark.

    Args:
      data: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, as Windows writes them.
      where: the file, for messages.
      lines: whether messages say the number of the line.

    Raises:
      Refused: if the bytes are none of these, or have a NUL character.
    """
    mark, encoding = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    name = encoding[:6].upper().rstrip("-")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        content, at = error.object, error.start
        line = ""
        if lines and not mark:
            begin = content.rfind(b"\n", 0, at) + 1
            line, at = f" line {content.count(10, 0, begin) + 1}", at - begin
        raise Refused(
            f"{where}{line} is not {name} (byte {content[error.start]:#04x} at {at}), expected "
            "UTF-8; convert the file (iconv -f latin1 -t utf-8)."
        ) from error
    text = text.lstrip("\ufeff")  # files that were put together may begin with two
    if "\0" in text:
        line = f" line {text.count(chr(10), 0, text.index(chr(0))) + 1}" if lines else ""
        raise Refused(
            f"{where}{line} has a NUL character, expected text in UTF-8; if it is UTF-16 without a "
            "byte-order mark, convert the file (iconv -f utf-16le -t utf-8)."
        )
    return text


def check_text(text: str, where: str) -> str:
    """Return a text that was written with escapes (as JSON), if it is one.

    Args:
      text: what was read.
      where: the file and line, for messages.

    Raises:
      Refused: if it has a NUL character or half of a UTF-16 pair.
    """
    bad = next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if bad is not None:
        raise Refused(
            f"{where} has the character U+{ord(bad):04X} in a text, expected none that UTF-8 has "
            "not, and no NUL; remove it."
        )
    return text


def read_text(path: str | Path) -> str:
    """Return the text of a file; see `decode_text`.

    Raises:
      OSError: if it cannot be opened.
      Refused: if it is no text, larger than any text file here, or a pipe or a device.
    """
    refuse_special(path)
    file = Path(path) if isinstance(path, str) else path  # which may be one of a bucket
    with file.open("rb") as opened:
        data = opened.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise Refused(
            f"{path} has more than {_MOST_BYTES >> 20} MiB, expected a text file; check that it is "
            "the right one."
        )
    return decode_text(data, str(path))


def refuse_special(path: str | os.PathLike) -> None:
    """Refuse a pipe, a socket or a device: opening a pipe waits for a writer, for ever.

    Args:
      path: of a file that need not be there; a bucket's is nothing on this machine.

    Raises:
      Refused: if it is one of these.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise Refused(
            f"{os.fspath(path)} is a pipe, a socket or a device, expected a file; give the file "
            "itself."
        )


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds, with a byte-order mark or without.

    Raises:
      OSError: if it cannot be opened.
      ValueError: if it is no text, or no JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise Refused(f"{path} nests too deep, expected JSON of a few levels; check it.") from error
