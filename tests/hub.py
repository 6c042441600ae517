"""A stand-in of the Hugging Face Hub on this machine, for the Hub's own client.

It speaks the addresses that the client calls to look, to make a repository, to write into it and to
read from it, and keeps what it was sent. The protocol is that of Git LFS: the client speaks it
where its other one, Xet, is switched off.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

TOKEN = "hf_a_secret_of_ada"
_LICENCES = ("apache-2.0", "mit", "openrail++", "other")
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the stand-in holds.

    Attributes:
      address: where it listens.
      account: the answer to "who am I".
      files: repository -> name -> content.
      private: repository -> whether it is.
      messages: of the commits, in order.
      asked: method and path of every request.
      failing: what a path begins with that is answered by an error of the server.
    """

    def __init__(self) -> None:
        self.address = ""
        self.account: dict[str, Any] = {
            "name": "ada",
            "orgs": [{"name": "engines"}],
            "auth": {"accessToken": {"role": "write"}},
        }
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.failing = "never"
        self.blobs: dict[str, bytes] = {}

    def make(self, name: str, *, private: bool = False) -> None:
        """Make an empty repository."""
        self.files[name], self.private[name] = {}, private


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing on the terminal."""

    def do_GET(self) -> None:
        path = self._begin()
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self._say(200, self.hub.account) if known else self._say(401, {})
        if path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            if name not in self.hub.files:
                return self._say(404, {}, {"X-Error-Code": "RepoNotFound"})
            return self._say(200, {"id": name, "private": self.hub.private[name], "sha": _COMMIT})
        name, _, file = path.removeprefix("/").partition("/resolve/main/")
        data = self.hub.files.get(name, {}).get(file)
        if data is None:
            return self._say(404, {})
        etag = hashlib.sha256(data).hexdigest()
        return self._say(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": _COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = self._begin()
        lines = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            licence = lines.decode().partition("license: ")[2].partition("\\n")[0]
            wrong = [{"message": '"license" must be one of the list'}]
            return self._say(*((200, {}) if licence in _LICENCES else (400, {"errors": wrong})))
        if self.hub.failing in path or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._say(403, {})
        if path == "/api/repos/create":
            return self._create(json.loads(lines))
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        if "/preupload/" in path:
            told = [
                {
                    "path": it["path"],
                    "uploadMode": "lfs" if it["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for it in json.loads(lines)["files"]
            ]
            return self._say(200, {"files": told})
        if path.endswith("/info/lfs/objects/batch"):
            todo = [
                it | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{it['oid']}"}}}
                for it in json.loads(lines)["objects"]
            ]
            return self._say(200, {"transfer": "basic", "objects": todo})
        assert path == f"/api/models/{name}/commit/main", path
        return self._commit(name, [json.loads(line) for line in lines.splitlines()])

    def do_PUT(self) -> None:
        path = self._begin()
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers["Content-Length"]))
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.blobs[oid] = data
        self._say(200, {})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.hub.files
        if not there:
            # as clients of 2.x, and of 1.x, say it
            private = asked.get("visibility") == "private" or asked.get("private", False)
            self.hub.make(name, private=private)
        self._say(409 if there else 200, {"url": f"{self.hub.address}/{name}"})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                self.hub.files[name][value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line
                self.hub.files[name][value["path"]] = self.hub.blobs[value["oid"]]
        address = f"{self.hub.address}/{name}/commit/{_COMMIT}"
        self._say(200, {"commitUrl": address, "commitOid": _COMMIT})

    def _begin(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        return path

    def _say(self, status: int, what: Any, headers: dict[str, str] | None = None) -> None:
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def hub_here(folder: Path, *, token: str = TOKEN) -> Iterator[Hub]:
    """Have the Hub's client speak to a stand-in, logged in by HF_TOKEN.

    Args:
      folder: of the client's cache, an empty one.
      token: of the user; "": nobody is logged in.
    """
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    # What HF_ENDPOINT, HF_HUB_DISABLE_XET, HF_HUB_OFFLINE and HF_HOME set when it is imported.
    files = "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{hub.address}{files}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_STORED_TOKENS_PATH": str(folder / "stored_tokens"),
    }
    try:
        with contextlib.ExitStack() as changed:
            for name, value in values.items():
                changed.enter_context(mock.patch.object(constants, name, value))
            said = {"HF_TOKEN": token, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
            said |= {"HUGGING_FACE_HUB_TOKEN": "", "HF_OIDC_RESOURCE": ""}
            changed.enter_context(mock.patch.dict("os.environ", said))
            yield hub
    finally:
        server.shutdown()
        server.server_close()
