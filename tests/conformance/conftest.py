"""Recorded vectors: everything a conformance test compares with comes from `--golden DIR`."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """Return the folder of recorded vectors."""
    return Path(request.config.getoption("--golden")).resolve(strict=True)
