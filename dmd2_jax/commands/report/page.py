"""The page around the sections: its head, its looks and its one script."""

import base64
import hashlib
from collections.abc import Iterable, Sequence

from dmd2_jax.commands.report.chart import key, short
from dmd2_jax.commands.report.markup import Markup, tag
from dmd2_jax.commands.report.runs import Run
from dmd2_jax.commands.report.style import SCRIPT, STYLE
from dmd2_jax.runtime.devices import device_words
from dmd2_jax.version import __version__

__all__ = ["page"]

_MOST_DEVICES = 4  # of a run that was resumed elsewhere
_PLACES = {
    "config": "Config",
    "curves": "Curves",
    "samples": "Samples",
    "metrics": "Metrics",
    "speed": "Speed and memory",
}


def page(runs: Sequence[Run], sections: Iterable[Markup]) -> str:
    """Return the whole page.

    It asks for nothing: its Content-Security-Policy allows pictures from data: alone, and the one
    style and the one script by their digests, so that no other script runs even if a text were
    not escaped.

    Args:
      runs: what it is of.
      sections: with the ids config, curves, samples, metrics, speed.
    """
    title = "dmd2 report: " + ", ".join(run.name for run in runs)
    rules = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(STYLE)}'; script-src '{_digest(SCRIPT)}'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=rules),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    links = [tag("a", words, href=f"#{place}") for place, words in _PLACES.items()]
    top = tag(
        "header",
        tag("h1", "dmd2 report"),
        tag("ul", *(_summary(run, style) for style, run in enumerate(runs)), class_="runs"),
    )
    foot = tag("footer", f"Written by dmd2_jax {__version__}.")
    body = tag(
        "body",
        top,
        tag("nav", *links, aria_label="Sections"),
        tag("main", *sections),
        foot,
        tag("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _summary(run: Run, style: int) -> Markup:
    """Say in one line what a run is, beside a piece of its line in the charts."""
    recipe = str(run.config.get("name", "unnamed"))[:80]
    done = "no report yet" if run.last is None else f"{run.unit} {short(run.last)}"
    if run.last is not None and run.length is not None:
        done += f" of {short(run.length)}"
    words = [run.command[:40], recipe, done]
    for entry in run.devices[:_MOST_DEVICES]:
        since = f" from {run.unit} {str(entry.get('after_step'))[:20]} on"
        words.append(f"on {device_words(entry)[:80]}" + (since if len(run.devices) > 1 else ""))
    return tag("li", key(style), " ", tag("b", run.name), f" – {', '.join(words)}")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
