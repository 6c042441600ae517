"""Buckets on this machine, which the real clients reach: gcsfs, s3fs, etils and TensorStore."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

BUCKET = "gs://a-bucket"


@contextlib.contextmanager
def emulated_bucket() -> Iterator[str]:
    """Serve an empty bucket; set what leads this process, and those it starts, to it."""
    from gcp_storage_emulator import server

    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            handlers[method] = _as_google(handler)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    served = server.create_server("127.0.0.1", port, True, BUCKET.removeprefix("gs://"))
    variables = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        # gcsfs would ask Google which kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "DMD2_OWNER_SECONDS": "3",
    }
    # A killed client leaves connections broken, which the server would print.
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch("socketserver.BaseServer.handle_error"),
        served,
    ):
        yield BUCKET


@contextlib.contextmanager
def emulated_s3() -> Iterator[str]:
    """Serve an empty bucket of s3://; see `emulated_bucket`."""
    import fsspec

    url = _s3_server()
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DMD2_OWNER_SECONDS": "3",
    }
    with mock.patch.dict(os.environ, variables):
        urlopen(Request(f"{url}/moto-api/reset", method="POST")).close()
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("s3-bucket")
        yield "s3://s3-bucket"


@functools.cache
def _s3_server() -> str:
    """Return the address of this process's server: clients are kept, and keep to the first."""
    from moto.server import ThreadedMotoServer

    port = _free_port()
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    return f"http://127.0.0.1:{port}"


def contents(place: str) -> dict[str, bytes]:
    """Return every object below a place of the bucket."""
    import fsspec

    client, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    names = client.find(root)
    # A command that runs may have removed what was listed.
    found = client.cat(names, on_error="omit") if names else {}
    return {name.removeprefix(f"{root}/"): content for name, content in found.items()}


def is_there(place: str, name: str) -> bool:
    """Return whether there is such an object below a place of the bucket, reading none."""
    import fsspec

    client, root = fsspec.core.url_to_fs(place, use_listings_cache=False)
    return client.exists(f"{root}/{name}")


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _as_google(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Add what TensorStore relies on and the emulator lacks: generations, and writes if unchanged.

    Without them every second read of what it has written fails ("Malformed StorageGeneration").
    """
    if hasattr(handler, "__wrapped__"):
        return handler

    @functools.wraps(handler)
    def handle(request: Any, response: Any, storage: Any) -> None:
        bucket, query = request.params.get("bucket_name"), request.query
        if "ifGenerationMatch" in query and "name" in query:
            there = _generation(storage, bucket, query["name"][0])
            if there != query["ifGenerationMatch"][0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                return
        handler(request, response, storage)
        if request.method == "GET" and "object_id" in request.params:
            response["x-goog-generation"] = _generation(
                storage, bucket, request.params["object_id"]
            )

    return handle


def _generation(storage: Any, bucket: str, name: str) -> str:
    from gcp_storage_emulator.exceptions import NotFound

    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"
