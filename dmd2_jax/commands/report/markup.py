"""HTML made of parts: text is escaped by construction, because run folders are not trusted."""

import math
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Markup", "joined", "number", "scrolling", "table", "tag"]

_VOID = frozenset({"img", "input", "meta"})


class Markup(str):
    """HTML that is finished: `tag` leaves it as it is and escapes every other string."""


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return one element.

    Args:
      name: of the element.
      children: `Markup` as it is; anything else as text, escaped.
      attributes: escaped; `aria_label` becomes aria-label and `class_` class; True stands alone,
        None and False are left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in _VOID else f"{start}{joined(children)}</{name}>")


def joined(parts: Iterable[object]) -> Markup:
    """Return parts one after another, escaped where they are no `Markup`."""
    return Markup("".join(p if isinstance(p, Markup) else escape(str(p)) for p in parts))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str) -> Markup:
    """Return a table in a frame of its own: a first row and a first column of headings.

    Args:
      head: the headings; text or `Markup`.
      rows: cells, as many each.
      caption: what it holds; for those who cannot see where it stands.
    """
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    inner = tag(
        "table", tag("caption", caption), tag("thead", top), tag("tbody", *body)
    )  # fmt: skip
    return scrolling(inner, caption)


def scrolling(inner: Markup, label: str) -> Markup:
    """Return a frame that scrolls sideways where it is too wide, by the keyboard too."""
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex=0)


def number(value: object) -> float | None:
    """Return a JSON value as a finite float, None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return result if math.isfinite(result) else None
