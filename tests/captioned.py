"""What `examples.captioned_digits.make` writes of a few digits, made once."""

import functools
from pathlib import Path
from unittest import mock

from examples.captioned_digits import make as captioned_digits
from tests.tiny import scratch

NUM = 20


@functools.cache
def made(family: str = "stable_diffusion") -> Path:
    """Return the folder; what is there is not to be changed."""
    out = scratch() / "captioned"
    words = ["captioned_digits", f"--out={out}", f"--num={NUM}", "--vae_steps=12"]
    words += [f"--family={family}"]
    # The tests' own process has its backend already.
    backend = mock.patch.object(captioned_digits, "prepare_backend")
    with mock.patch("sys.argv", words), backend:
        captioned_digits.main()
    return out
