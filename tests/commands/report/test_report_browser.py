"""The page of `dmd2 report` in a real browser; skipped where there is none."""

import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.report.folders import Page
from tests.commands.report.pages import evil_page, two_runs

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")


def browse(folder: Path, page: str, *words: str) -> tuple[str, list[str]]:
    """Open a page; return the document as it is after loading, and the console's lines."""
    file = folder / "page.html"
    file.write_text(page)
    # The sandbox of the browser needs rights that containers and root do not have.
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    done = subprocess.run(
        [BROWSER, *fixed, f"--user-data-dir={folder / 'profile'}", *words, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_browse_sees_what_the_console_says(tmp_path: Path) -> None:
    """The other tests find the console silent: it must not be deaf."""
    scripts = ["console.error('said')", "throw new Error('uncaught')", "nowhere()"]
    page = "<!DOCTYPE html><title>x</title>"
    page += "".join(f"<script>{script};</script>" for script in scripts)
    _, console = browse(tmp_path, page, "--dump-dom")
    for words, line in zip(("said", "Error: uncaught", "nowhere is not"), console, strict=True):
        assert words in line


def test_browse_sees_what_a_policy_stops(tmp_path: Path) -> None:
    policy = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'">'
    page = f"<!DOCTYPE html>{policy}<title>x</title><script>document.title = 'ran';</script>"
    text, console = browse(tmp_path, page, "--dump-dom")
    assert "<title>x</title>" in text
    assert any("Content Security Policy" in line for line in console)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the document of two runs as the browser has it; its console is checked."""
    text, console = browse(tmp_path_factory.mktemp("dom"), two_runs().source, "--dump-dom")
    assert console == []
    return text


def test_page_shows_one_grid_of_each_run_by_a_slider(document: str) -> None:
    page = Page(re.sub(r"^.*?<html", "<html", document, flags=re.DOTALL))
    (slider,) = (found for found in page.all("div") if found.get("class") == "slider")
    assert "hidden" not in slider
    shown = [found for found in page.all("li") if "data-step" in found and "hidden" not in found]
    assert len(shown) == 2
    (control,) = page.all("input")
    assert control["aria-valuetext"].startswith("cycle or step ")


def test_page_has_a_picture_and_a_silent_console(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    words = ("--window-size=1280,1600", f"--screenshot={picture}")
    _, console = browse(tmp_path, two_runs().source, *words)
    assert console == []
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (1600, 1280)
    assert np.unique(pixels).size > 50  # text, lines and grids, no blank page
    assert 0.5 < (pixels > 240).mean() < 0.99


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_never_wider_than_the_window(tmp_path: Path, width: int) -> None:
    # The page's policy forbids the tests' scripts too. In a frame, as no window is that narrow.
    page = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", two_runs().source)
    page = page.replace("<details>", "<details open>")
    frame = f'<iframe id="frame" width="{width}" height="800" srcdoc="{escape(page)}"></iframe>'
    script = (
        "onload = () => { const inner = document.getElementById('frame');"
        " document.title = [inner.contentDocument.documentElement.scrollWidth,"
        " inner.contentWindow.innerWidth].join(); }"
    )
    head = "<!DOCTYPE html><title>not loaded</title>"
    text, _ = browse(tmp_path, f"{head}<script>{script}</script>{frame}", "--dump-dom")
    needed, window = map(int, re.findall("<title>(.*?)</title>", text)[0].split(","))
    assert window == width
    assert needed <= window


def test_page_of_hostile_texts_runs_none_of_them(tmp_path: Path) -> None:
    text, console = browse(tmp_path, evil_page().source, "--dump-dom")
    assert console == []  # nor was anything stopped by the policy
    (title,) = re.findall("<title>(.*?)</title>", text, re.DOTALL)
    assert unescape(title).startswith("dmd2 report: <script>")
