"""Harmless payloads in hostile files: what runs them creates a marker, and nothing else."""

import os
from pathlib import Path


class Payload:
    """Pickles as a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._marker}",)
