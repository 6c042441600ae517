"""Run folders made by hand, and a reader of the page that is made of them."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VOID = {"img", "input", "meta"}


def write_run(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    command: str = "distill",
    rows: list[Any] | None = None,
    speed: list[Any] | None = None,
    figures: Any = None,
    grids: dict[int, np.ndarray] | None = None,
    changes: list[Any] | None = None,
    devices: list[Any] | None = None,
) -> Path:
    """Write a run folder with what is given, and return it."""
    folder.mkdir(parents=True)
    record = {"command": command, "config": config or {"name": "x", "distill": {"cycles": 9}}}
    record |= {"changes": changes} if changes else {}
    record |= {"devices": devices} if devices else {}
    (folder / "config.json").write_text(json.dumps(record))
    for name, lines in (("metrics.jsonl", rows), ("speed.jsonl", speed)):
        if lines is not None:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if figures is not None:
        (folder / "metrics.json").write_text(json.dumps(figures))
    for step, pixels in (grids or {}).items():
        Image.fromarray(pixels).save(folder / f"grid_{step:07d}.png")
    return folder


class Page(HTMLParser):
    """What a page holds; raises AssertionError where an element is not closed in order.

    Attributes:
      elements: (name, attributes) of each.
      tables: caption -> rows of cells' texts.
      text: all text that is seen.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.source = source
        self._open: list[str] = []
        self._caption = ""
        self.feed(source)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def all(self, name: str) -> list[dict[str, str]]:
        """Return the attributes of each element of that name."""
        return [attributes for element, attributes in self.elements if element == name]

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attributes}) == len(attributes), "an attribute twice"
        self.elements.append((name, {key: value or "" for key, value in attributes}))
        if name == "caption":
            self._caption = ""
        if name == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if name in ("td", "th"):
            self.tables[self._caption][-1].append("")
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self._open, f"</{name}> closes nothing"
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data
        if "caption" in self._open:
            self._caption += data
        if "td" in self._open or "th" in self._open:
            self.tables[self._caption][-1][-1] += data
