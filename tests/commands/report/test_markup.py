"""HTML made of parts: text cannot become an element."""

import pytest

from dmd2_jax.commands.report.markup import Markup, number, tag


def test_tag_escapes_text_and_attributes() -> None:
    made = tag("p", "<b>&", tag("i", "'"), title='"><script>')
    expected = '<p title="&quot;&gt;&lt;script&gt;">&lt;b&gt;&amp;<i>&#x27;</i></p>'
    assert made == expected


def test_tag_takes_a_string_that_was_joined_to_markup_for_text() -> None:
    assert tag("p", tag("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"


def test_tag_writes_attributes_as_html_names_them() -> None:
    made = tag("input", class_="a", aria_label="b", data_step=0, hidden=True, id=None, step=False)
    assert made == '<input class="a" aria-label="b" data-step="0" hidden>'
    assert isinstance(made, Markup)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (float("inf"), None), (10**400, None)],
)
def test_number_is_a_finite_float_or_none(value: object, expected: float | None) -> None:
    assert number(value) == expected
