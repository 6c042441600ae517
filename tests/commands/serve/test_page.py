"""The page of `dmd2 serve` in a real browser; skipped where there is none, or no Gradio."""

import base64
import contextlib
import io
import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra [serve]")

from dmd2_jax.commands.serve import page as page_module
from dmd2_jax.commands.serve.drawing import Drawer, Drawn
from dmd2_jax.commands.serve.live import Live
from dmd2_jax.commands.serve.server import listening, prepared, quiet_gradio
from dmd2_jax.commands.serve.style import STYLE
from dmd2_jax.commands.serve.subjects import Offer, Request, open_run_folder
from tests.commands.serve.browser import BROWSER, Tab, browser
from tests.tiny import student_run

pytestmark = pytest.mark.filterwarnings("ignore:.*:Warning:gradio.*")
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on this machine")


@contextlib.contextmanager
def served(run: Path) -> Iterator[tuple[str, Drawer]]:
    """Serve the page of a run from a thread; yield its address."""
    drawer = Drawer(open_run_folder(str(run)))
    with served_by(drawer, Live(str(run))) as address:
        yield address, drawer


@contextlib.contextmanager
def served_by(drawer: Any, live: Live | None) -> Iterator[str]:
    with (
        listening("127.0.0.1", 0) as door,
        quiet_gradio(),
        mock.patch.object(page_module, "_SECONDS", 0.3),
    ):
        server = prepared(page_module.page(drawer, live), STYLE, door.port)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door.listener]})
        thread.start()
        try:
            yield door.address
        finally:
            server.should_exit = True
            thread.join()


class Pad:
    """Takes prompts as a pipeline's Drawer does, and draws black at once."""

    def __init__(self) -> None:
        offer = Offer(["student"], of_prompts=True)
        self.subject = SimpleNamespace(title="pad", offer=offer, check=lambda request: None)
        self.asked: list[str] = []

    def must_compile(self, network: str, request: Request) -> bool:
        return False

    def draw(self, network: str, request: Request) -> Drawn:
        self.asked.append(request.what)
        return Drawn(np.zeros((1, 4, 4, 1), np.uint8), [""], 0.1, 1, 0.0, "pad", "")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as new_tab:
        yield new_tab()


@pytest.fixture(scope="module")
def connected() -> Iterator[list]:
    """Return the addresses that this process connects to, from here on."""
    found, connect = [], socket.socket.connect

    def noting(self: socket.socket, address: object) -> None:
        found.append(address)
        connect(self, address)

    with mock.patch.object(socket.socket, "connect", noting):
        yield found


@pytest.fixture(scope="module")
def page(connected: list) -> Iterator[tuple[str, Drawer]]:
    with served(student_run()) as found:
        yield found


def pictures(tab: Tab, network: str) -> list[np.ndarray]:
    """Return the pictures of a network that the page shows, from the bytes that it was sent."""
    script = f"Array.from(document.querySelectorAll('#{network} img'), (it) => it.src)"
    prefix = "data:image/png;base64,"
    uris = tab.value(script)
    assert all(uri.startswith(prefix) for uri in uris)
    data = [base64.b64decode(uri.removeprefix(prefix)) for uri in uris]
    return [np.asarray(Image.open(io.BytesIO(png)))[..., None] for png in data]


def idle(tab: Tab) -> None:
    """Wait until both networks have drawn, and nothing is said any more."""
    tab.wait(
        "document.querySelectorAll('#teacher img').length"
        " && document.querySelectorAll('#student img').length"
        " && !document.querySelector('#said').innerText.trim()"
    )


def with_seed(tab: Tab, seed: int) -> None:
    """Give another seed, and wait for its pictures."""
    tab.type("#seed input", str(seed))
    tab.wait(f"!!document.querySelector('#teacher img[alt*=\"seed {seed},\"]')")
    idle(tab)


@needs_browser
def test_another_seed_is_another_picture_and_the_same_the_same(
    tab: Tab, page: tuple[str, Drawer]
) -> None:
    address, drawer = page
    tab.open(address)
    tab.click("#draw")
    idle(tab)
    first = pictures(tab, "student")
    for network in ("teacher", "student"):
        drawn = drawer.draw(network, Request(num=4))
        np.testing.assert_array_equal(pictures(tab, network), drawn.images)
        text = tab.value(f"document.querySelector('#{network}').innerText")
        calls = "3 network calls each" if network == "teacher" else "1 network call each"
        assert calls in text and "s for 4 pictures" in text
    with_seed(tab, 5)
    assert np.any(pictures(tab, "student") != np.array(first))
    with_seed(tab, 0)
    np.testing.assert_array_equal(pictures(tab, "student"), first)
    tab.click("#next")
    tab.wait("!!document.querySelector('#teacher img[alt*=\"seed 1,\"]')")


@needs_browser
def test_class_is_chosen_by_its_number_and_one_that_is_none_is_said(
    tab: Tab, page: tuple[str, Drawer]
) -> None:
    tab.open(page[0])
    tab.type("#what input", "7")
    tab.click("#draw")
    idle(tab)
    captions = "Array.from(document.querySelectorAll('#student figcaption'), (it) => it.innerText)"
    assert tab.value(captions) == ["7"] * 4
    tab.type("#what input", "99")
    tab.click("#draw")
    said = tab.wait("document.querySelector('#said [role=alert]')?.innerText")
    assert said.startswith("classes=99 is no class, expected class numbers in 0..9")
    assert not pictures(tab, "student")
    assert "Traceback" not in tab.value("document.body.innerText")
    tab.type("#what input", "7")
    with_seed(tab, 2)  # and goes on
    tab.type("#seed input", "-1")
    tab.wait("document.querySelector('#said').innerText.startsWith('seed=-1, expected')")


@needs_browser
def test_page_asks_for_nothing_elsewhere_and_its_console_is_silent(
    tab: Tab, page: tuple[str, Drawer], connected: list
) -> None:
    # What the page before was still asking for is torn off where it is left, and said there.
    tab.open("about:blank")
    tab.said.clear()
    tab.asked_for.clear()
    tab.open(page[0])
    tab.click("#draw")
    idle(tab)
    assert tab.said == []
    elsewhere = [it for it in tab.asked_for if not it.startswith((f"{page[0]}/", "data:"))]
    assert len(tab.asked_for) > 5 and elsewhere == []
    hosts = {it[0] for it in connected if isinstance(it, tuple)}
    assert hosts <= {"127.0.0.1", "localhost", "::1"}
    policy = urllib.request.urlopen(page[0]).headers["Content-Security-Policy"]
    assert "default-src 'self';" in policy and "http" not in policy
    # The policy is in force: what is not from here does not load.
    tab.value("fetch('http://192.0.2.1/x').catch(() => { document.title = 'stopped' })")
    tab.wait("document.title === 'stopped'", patience=5)
    tab.said.clear()


@needs_browser
def test_prompt_is_drawn_by_enter_and_the_page_keeps_its_width(tab: Tab) -> None:
    pad = Pad()
    width = "document.querySelector('#drawing').getBoundingClientRect().width"
    with served_by(pad, None) as address:
        tab.open(address)
        before = tab.wait(width)
        tab.type("#what textarea, #what input", "a handwritten three")
        tab.wait("document.querySelectorAll('#student img').length")
        assert pad.asked == ["a handwritten three"]
        assert tab.value(width) == before > 900


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_never_wider_than_the_window(
    width: int, tab: Tab, page: tuple[str, Drawer]
) -> None:
    tab.open(page[0], width=width)
    tab.click("#draw")
    idle(tab)
    # As soon as everything has its place.
    tab.wait(f"document.documentElement.scrollWidth <= {width}", patience=10)


@needs_browser
def test_run_without_weights_shows_its_grid_and_curves_as_they_come(
    tab: Tab, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    there = shutil.ignore_patterns("checkpoints", "*.safetensors", "grid_*")
    shutil.copytree(student_run(), run, ignore=there)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    with served(run) as (address, _):
        tab.open(address)
        tab.wait("document.querySelector('#top').innerText.includes('cycle 2 of 4')")
        before = tab.wait("document.querySelector('#curves img')?.src")
        assert "no samples yet" in tab.value("document.querySelector('#grid').innerText")
        tab.click("#draw")
        tab.wait("!!document.querySelector('#teacher img')")
        why = tab.value("document.querySelector('#student').innerText")
        assert "no weights at" in why and "student.safetensors" in why
        (run / "metrics.jsonl").write_text("".join(lines))
        shutil.copy(student_run() / "grid_0000004.png", run)
        tab.wait("document.querySelector('#grid').innerText.includes('Samples after cycle 4')")
        tab.wait(f"document.querySelector('#curves img').src !== {json.dumps(before)}")
        assert "finished" in tab.value("document.querySelector('#top').innerText")


def test_nothing_but_the_page_is_read_or_taken(page: tuple[str, Drawer]) -> None:
    address, _ = page
    for file in (student_run() / "config.json", Path("/etc/passwd"), Path(__file__)):
        for way in ("file=", "stream/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}/gradio_api/{way}{file}")
            assert refused.value.code in (403, 404)
    boundary, head = "x", 'Content-Disposition: form-data; name="files"; filename="a.txt"'
    body = f"--{boundary}\r\n{head}\r\n\r\nsome text\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", body, kind))
    assert refused.value.code == 413


def test_waiting_is_said_with_its_reason(page: tuple[str, Drawer]) -> None:
    request = Request("3", num=6)
    said = [step[0] for step in page_module._draw(page[1], request)]
    assert len(said) == 3 and not said[2].endswith("…</p>")
    for words, network in zip(said, ("student", "teacher"), strict=False):
        assert f"Compiling the {network}&#x27;s program for this number of pictures" in words
    again = [step[0] for step in page_module._draw(page[1], request)]
    assert "The student draws" in again[0] and "The teacher draws" in again[1]
