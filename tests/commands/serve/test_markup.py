"""Texts of runs are not trusted: none becomes a part of the page's HTML, or a template."""

import base64
import io
import re

import numpy as np
from PIL import Image

from dmd2_jax.commands.serve.drawing import Drawn
from dmd2_jax.commands.serve.markup import drawn_html, empty_html, picture_html, said_html, top_html

EVIL = '<script>alert(1)</script>" onload="x {{value}} ${value} &'


def drawn(num: int, **others: object) -> Drawn:
    images = np.arange(num * 4 * 4, dtype=np.uint8).reshape(num, 4, 4, 1)
    values = {"captions": [EVIL] * num, "seconds": 0.0123, "calls": 35, "compiling": 0.0}
    return Drawn(images, **(values | {"name": EVIL, "note": EVIL} | others))  # type: ignore[arg-type]


def test_texts_are_escaped_and_no_templates() -> None:
    pages = [
        top_html(EVIL, EVIL),
        said_html(EVIL, fault=True),
        empty_html("student", EVIL),
        drawn_html("student", drawn(2), 0),
        picture_html(b"", EVIL, EVIL),
    ]
    for page in pages:
        assert "&lt;script&gt;" in page
        assert not re.search(r"<script|\" onload|\{|\$", page)


def test_pictures_keep_their_bytes_and_say_what_they_are() -> None:
    it = drawn(3, captions=["7 seven"] * 3)
    page = drawn_html("teacher", it, 5)
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page)
    for i, (data, about) in enumerate(found):
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(image, it.images[i, ..., 0])
        assert about == f"teacher, seed 5, picture {i + 1}, class 7 seven"
    assert len(found) == 3 and "--columns: 2" in page


def test_figures_are_said_with_their_unit() -> None:
    one = drawn_html("student", drawn(1, calls=1), 0)
    assert "<b>12 ms</b>, <b>1 network call</b></p>" in one
    several = drawn_html("teacher", drawn(4, seconds=1.25, compiling=12.3), 0)
    assert "<b>1.2 s</b> for 4 pictures, <b>35 network calls</b> each" in several
    assert "compiled in 12 s, once" in several
