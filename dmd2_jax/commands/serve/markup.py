"""Parts of the page as HTML; every text is escaped, because runs and pipelines are not trusted."""

import base64
import math
from html import escape

from dmd2_jax.commands.serve.drawing import Drawn
from dmd2_jax.data.reading.decode import encode_png

__all__ = ["drawn_html", "empty_html", "picture_html", "said_html", "top_html"]

_PIXELS = 128
"""Up to this width single pixels are to be seen, not smoothed."""


def top_html(title: str, words: str) -> str:
    """Return the page's head: what it draws by, and how far the run is."""
    return f"<h1>{_text(title)}</h1><p>{_text(words)}</p>"


def said_html(words: str, *, fault: bool = False) -> str:
    """Return what is said of a request, in words; a fault is announced to screen readers."""
    role, kind = ("alert", "fault") if fault else ("status", "wait")
    return f'<p role="{role}" class="{kind if words else "silent"}">{_text(words)}</p>'


def empty_html(network: str, why: str = "") -> str:
    """Return the column of a network that has drawn nothing, and why if there is a reason."""
    kind, words = ("fault", why) if why else ("soft", "Nothing drawn yet.")
    return f'{_heading(network)}<p class="{kind}">{_text(words)}</p>'


def drawn_html(network: str, drawn: Drawn, seed: int) -> str:
    """Return the column of a network: its pictures, their time and its calls."""
    columns = math.isqrt(len(drawn.images) - 1) + 1
    figures = []
    for i, (image, caption) in enumerate(zip(drawn.images, drawn.captions, strict=True)):
        kind = "pixels" if image.shape[1] <= _PIXELS else "smooth"
        about = f"{network}, seed {seed}, picture {i + 1}{f', class {caption}' if caption else ''}"
        label = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
        figures.append(f"<figure>{_image(encode_png(image), about, kind)}{label}</figure>")
    several = len(figures) > 1
    calls = f"{drawn.calls} network call{'' if drawn.calls == 1 else 's'}"
    words = (
        f"<b>{_seconds(drawn.seconds)}</b>{f' for {len(figures)} pictures' if several else ''}, "
        f"<b>{calls}</b>{' each' if several else ''}"
    )
    if drawn.compiling:
        words += f'<span class="soft">, compiled in {_seconds(drawn.compiling)}, once</span>'
    note = f'<p class="soft">{_text(drawn.note)}</p>' if drawn.note else ""
    grid = f'<div class="pictures" style="--columns: {columns}">{"".join(figures)}</div>'
    return f'{_heading(network)}{grid}<p class="figures">{words}</p>{note}'


def picture_html(picture: bytes | None, words: str, about: str) -> str:
    """Return one of the run's own pictures, or why there is none."""
    image = "" if picture is None else _image(picture, about, "smooth")
    return f'{image}<p class="soft">{_text(words)}</p>'


def _heading(network: str) -> str:
    return f"<h3>{_text(network.capitalize())}</h3>"


def _image(png: bytes, about: str, kind: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img class="{kind}" src="data:image/png;base64,{data}" alt="{_text(about)}">'


def _text(text: str) -> str:
    """Return a text as HTML that is no template either: Gradio fills in what stands in braces."""
    return escape(text).replace("{", "&#123;").replace("$", "&#36;")


def _seconds(value: float) -> str:
    if value < 0.1:
        return f"{1000 * value:.2g} ms"
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
