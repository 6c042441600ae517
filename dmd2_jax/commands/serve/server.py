"""The page on its way to the browser: one address of this machine, nothing from other hosts."""

import contextlib
import errno
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data.reading.contract import MissingPackageError
from dmd2_jax.runtime.whole_file import scratch_folder

__all__ = ["Door", "check_gradio", "listening", "prepared", "quiet_gradio", "serve"]

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio has inline scripts, templates
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
"""What the browser may load for the page: of this server alone."""

_LEAST_BYTES = 1
"""An upload may have: the page has none."""

_PATIENCE = 1
"""Seconds that open connections are given at the end; a browser holds one as long as it is open."""


class Door(NamedTuple):
    """A socket that listens.

    Attributes:
      listener: the socket.
      host, port: where.
    """

    listener: socket.socket
    host: str
    port: int

    @property
    def address(self) -> str:
        """The page's address for a browser of this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.port}"


def check_gradio() -> None:
    """Refuse to work without Gradio.

    Raises:
      MissingPackageError: if it is not installed.
    """
    try:
        found = importlib.util.find_spec("gradio") is not None
    except ValueError:  # as of a module that was made by hand
        found = True
    if not found:
        raise MissingPackageError(lacks("dmd2 serve", "gradio", "serve"))


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[Door]:
    """Listen at an address as long as the body runs.

    Args:
      host: a name or an address of this machine.
      port: 0: any that is free.

    Raises:
      Refused: if the port is taken, or the address is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Refused(
                f"--port={port} is taken at {host}, expected a free one; end what listens there, "
                f"or try {port + 1 if port + 1 < 2**16 else 0}."
            ) from error
        raise Refused(
            f"--host={host} --port={port} cannot be listened at ({error}), expected an address of "
            "this machine and a port of one's own; try 127.0.0.1 and 7860."
        ) from error
    with listener:
        yield Door(listener, host, listener.getsockname()[1])


@contextlib.contextmanager
def quiet_gradio() -> Iterator[None]:
    """Let Gradio tell nobody of its use, and keep its files apart, in a folder that goes.

    To be entered before Gradio is imported.
    """
    with scratch_folder("serve") as scratch:
        own = {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": str(scratch),
        }
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _application(blocks: Any, style: str, port: int) -> Any:
    """Return the ASGI application of a page, which no browser lets load from other hosts.

    Args:
      blocks: Gradio's.
      style: CSS.
      port: that it is served at.
    """
    import gradio
    from fastapi import FastAPI

    font = (gradio.themes.Font("system-ui"), gradio.themes.Font("sans-serif"))
    theme = gradio.themes.Base(primary_hue="blue", neutral_hue="slate", font=font, font_mono=font)
    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        server_port=port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=_LEAST_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=style,
    )
    app.add_middleware(_OwnHostOnly)
    return app


class _OwnHostOnly:
    """Send the page's policy with every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self._app(scope, receive, with_policy)


def prepared(blocks: Any, style: str, port: int) -> Any:
    """Return uvicorn's server of a page, which serves it at any socket.

    Args:
      blocks: Gradio's.
      style: CSS.
      port: that it is served at.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            # A browser holds its connection until it is cut off, which uvicorn tells at length.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    app = _application(blocks, style, port)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=_PATIENCE)
    return Server(config)


def serve(blocks: Any, style: str, door: Door) -> None:
    """Serve a page until Ctrl-C; see `prepared`."""
    server = prepared(blocks, style, door.port)
    print(f"the page is at {door.address}; Ctrl-C ends it.", flush=True)
    # Ctrl-C is how it ends, and no failure; uvicorn passes it on when it has closed.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[door.listener])
