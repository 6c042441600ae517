"""A headless Chromium that is told what to do, by its own protocol over two pipes.

https://chromedevtools.github.io/devtools-protocol: one JSON object a message, ended by a zero byte.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), ""
)
# The sandbox of the browser needs rights that containers and root do not have.
_WORDS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
    *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
)
_PATIENCE = 60.0


class Tab:
    """One page in a browser.

    Attributes:
      said: what its console has said.
      asked_for: the addresses that it has loaded or tried to.
    """

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer, self._sent, self._session = b"", 0, ""
        self.said: list[str] = []
        self.asked_for: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, address: str, *, width: int = 1280, height: int = 1000) -> None:
        """Go to a page."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self.value("window.left = true")
        self._call("Page.navigate", url=address)
        self.wait("!window.left && document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, *, patience: float = _PATIENCE) -> Any:
        """Wait until an expression is true, and what it looks at is there; return its value."""
        end = time.monotonic() + patience
        while not (value := self.value(f"(() => {{ try {{ return {script} }} catch {{}} }})()")):
            text = "in vain: {}\n{}\n{}"
            assert time.monotonic() < end, text.format(
                script, self.value("document.body.innerText"), self.said
            )
            self._receive(0.05)
        return value

    def click(self, selector: str) -> None:
        """Click an element with the mouse, as soon as nothing covers it."""
        x, y = self.wait(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            " it.scrollIntoView({block: 'center'}); const box = it.getBoundingClientRect();"
            " const at = [box.x + box.width / 2, box.y + box.height / 2];"
            " return it.contains(document.elementFromPoint(...at)) && at; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Write into a field in place of what is there, and leave it by Enter."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self._call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                windowsVirtualKeyCode=13,
            )  # fmt: skip

    def picture(self) -> bytes:
        """Return the window as a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": arguments}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            for answer in self._receive(1.0):
                if answer.get("id") == self._sent:
                    assert "error" not in answer, answer
                    return answer["result"]
        raise TimeoutError(method)

    def _receive(self, seconds: float) -> list[dict[str, Any]]:
        """Read what has come; keep what the console says and what is loaded."""
        if not select.select([self._reading], [], [], seconds)[0]:
            return []
        part = os.read(self._reading, 2**20)
        assert part, "the browser has ended"
        *messages, self._buffer = (self._buffer + part).split(b"\0")
        found = [json.loads(message) for message in messages]
        for it in found:
            match it.get("method"), it.get("params"):
                case "Runtime.consoleAPICalled", params:
                    self.said += [f"{params['type']}: {a.get('value')}" for a in params["args"]]
                case "Runtime.exceptionThrown", params:
                    self.said.append(f"exception: {params['exceptionDetails']}")
                case "Log.entryAdded", params:
                    self.said.append(f"{params['entry']['level']}: {params['entry']['text']}")
                case "Network.requestWillBeSent", params:
                    self.asked_for.append(params["request"]["url"])
        return found


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Callable[[], Tab]]:
    """Start a browser; yield what opens a tab."""
    its_in, writing = os.pipe()
    reading, its_out = os.pipe()
    # The numbers that the browser expects; sh may take no larger ones than 9.
    script = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    words = [*_WORDS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", BROWSER, *words],
        pass_fds=(its_in, its_out),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_in)
    os.close(its_out)
    try:
        yield lambda: Tab(reading, writing)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(writing)
        os.close(reading)
