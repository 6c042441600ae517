"""`python -m dmd2_jax.main`: the old place of `dmd2_jax.commands.main`, kept for one release."""

import sys

from dmd2_jax.commands.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
