"""What strangers' text may do to a terminal: nothing."""

import logging

import pytest

from dmd2_jax.config.printable import PrintableFormatter, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat\x1b[2Jdog", "cat\\x1b[2Jdog"),
        ("a\rb\x07\x9b", "a\\rb\\x07\\x9b"),
        ("exe\u202egnp.x", "exe\\u202egnp.x"),
        ("half\udcff", "half\\udcff"),
        ("two\nlines\tand écran 数字 \U0001f469\u200d\U0001f52c", None),
    ],
)
def test_printable_spells_out_what_acts_and_nothing_else(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)


def test_logged_names_are_printable() -> None:
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "%s is broken", ("\x1b]0;x",), None)
    assert PrintableFormatter("%(message)s").format(record) == "\\x1b]0;x is broken"
