"""The signals that end a process from outside, without JAX: whoever supervises needs them too."""

import signal

__all__ = ["terminations"]


def terminations(*, together: bool = False) -> tuple[signal.Signals, ...]:
    """Return the signals by which a scheduler or a closed terminal ends this process.

    SIGHUP is left out where it is ignored, as `nohup` wants it, and where the system has none.

    Args:
      together: with `jax.distributed`, where SIGTERM is XLA's.
    """
    hup = getattr(signal, "SIGHUP", None)
    heard = hup is not None and signal.getsignal(hup) not in (signal.SIG_IGN, None)
    return (*(() if together else (signal.SIGTERM,)), *((hup,) if heard else ()))
