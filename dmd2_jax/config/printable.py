"""Text of strangers on a terminal: what would move the cursor or turn the line is spelt out."""

import logging
import unicodedata

__all__ = ["PrintableFormatter", "printable"]

_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    """Return a text in which control characters, marks of direction and half pairs are escapes.

    Line ends and tabs stay, as messages of several lines have them; so do the joiners that scripts
    and emoji need.

    Args:
      text: it may hold names of files, classes and prompts.
    """
    return "".join(_spelt(c) if _acts(c) else c for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats a record as its base does, and makes it `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(super().format(record))


def _acts(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in _TURNS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _spelt(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
