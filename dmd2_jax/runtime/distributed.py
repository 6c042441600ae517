"""Several processes as one run: how they join, agree and talk; the first one writes and speaks.

Processes talk through the store of JAX's coordination service, not through the devices: it takes
text, and a process may wait in it for as long as another one draws pictures.
"""

import functools
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from dmd2_jax.runtime.offload import in_host_memory
from dmd2_jax.runtime.processes import JoinError, Place
from dmd2_jax.runtime.supervisor import LOST, say_if_aborted
from dmd2_jax.typing import PyTree

__all__ = [
    "PeerError",
    "from_all",
    "from_first",
    "in_step",
    "is_first",
    "join",
    "on_first",
    "put",
    "say",
    "say_once",
    "to_host",
]

T = TypeVar("T")

_WAIT = 24 * 3600 * 1000  # milliseconds; a process that dies ends the wait of the others
_SHUTDOWN = 30  # seconds that a process that ends waits for the others to end too
_talks = itertools.count()
_said: list[str] = []  # keys of this process that the store still holds


class PeerError(RuntimeError):
    """Another process of this run failed at what all were waiting for."""


def join(place: Place) -> None:
    """Join the other processes of the run; call it before JAX touches a device.

    Afterwards `jax.devices()` are those of all of them. Processes but the first print nothing
    to standard output, and log errors only.

    Args:
      place: from `find_place`.

    Raises:
      JoinError: if the others were told other counts, or have other numbers of devices.
      ConnectionError: if they cannot be reached, or one of them is lost before all have agreed.
    """
    options = {} if place.coordinator is None else place._asdict()
    if options:
        options["coordinator_address"] = options.pop("coordinator")
    # How long the others may miss a sign of life before the run ends, and a place be waited for.
    heartbeat = int(os.environ.get("DMD2_HEARTBEAT_SECONDS", "100"))
    timeout = int(os.environ.get("DMD2_JOIN_SECONDS", "300"))
    number = place.process_id if options else "(found by JAX)"
    remedy = (
        f"expected {place.num_processes or 'all'} processes with the same coordinator and count, "
        f"each with its own number, within {timeout} seconds (DMD2_JOIN_SECONDS); start them all, "
        f"and give all the same coordinator and count. Where all were started, one of them has "
        f"ended: its own messages say why."
    )
    # XLA may abort a process that waits in vain, past Python.
    say_if_aborted(f"process {number} could not join the others, {remedy}")
    try:
        jax.distributed.initialize(
            **options,
            heartbeat_timeout_seconds=heartbeat,
            initialization_timeout=timeout,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except Exception as error:  # of many kinds, by cluster and version
        raise ConnectionError(
            f"process {number} cannot join the others ({_first_line(error)}), {remedy}"
        ) from error
    say_if_aborted("")  # all have come: who is silent from here on is gone
    try:
        _check_counts(timeout)
    except JoinError:
        raise
    except Exception as error:  # where the loss of a process does not abort this one
        raise ConnectionError(
            f"process {number} had joined the others ({_first_line(error)}): {LOST} Its own "
            f"messages say why; start all processes again."
        ) from error
    if not is_first():
        logging.getLogger().setLevel(logging.ERROR)
    _tidy_output(keep=is_first())


def is_first() -> bool:
    """Return whether this is the process that writes and speaks: number 0, or the only one."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print to standard error, once a run."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Say what a process may find several times; see `say`."""
    say(text)


def from_all(value: Any) -> list[Any]:
    """Return what every process of the run gives, in their order; every process must call it.

    Args:
      value: this one's; anything JSON holds.
    """
    if jax.process_count() == 1:
        return [value]
    key = f"dmd2/{next(_talks)}"
    own = f"{key}/{jax.process_index()}"
    _store().key_value_set(own, json.dumps(value))
    texts = [
        _store().blocking_key_value_get(f"{key}/{number}", _WAIT)
        for number in range(jax.process_count())
    ]
    # Whoever answered this time had read what was said before, which may be megabytes.
    while _said:
        _store().key_value_delete(_said.pop())
    _said.append(own)
    return [json.loads(text) for text in texts]


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` returns in the first process, which alone calls it; all must ask.

    Args:
      make: returns anything JSON holds.

    Raises:
      Exception: in the first process, what `make` raises.
      PeerError: in the others, if it raises.
    """
    if jax.process_count() == 1:
        return make()
    key = f"dmd2/{next(_talks)}"
    if not is_first():
        told = json.loads(_store().blocking_key_value_get(key, _WAIT))
        if "error" in told:
            raise PeerError(f"the first process stopped ({told['error']}); see its message.")
        return told["value"]
    try:
        value = make()
    except BaseException as error:
        told = {"error": f"{type(error).__name__}: {error}"[:1000]}
        _store().key_value_set(key, json.dumps(told))
        raise
    _store().key_value_set(key, json.dumps({"value": value}))
    _said.append(key)
    return value


def on_first(act: Callable[[], T]) -> T | None:
    """Call `act` in the first process while the others wait; they return None.

    Raises:
      Exception: see `from_first`.
    """
    result: list[T] = []
    from_first(lambda: result.append(act()))
    return result[0] if result else None


def in_step(program: Any) -> Callable[..., Any]:
    """Return a jitted function that is not run before every process has compiled it.

    Compilations differ by more than the 30 seconds that Gloo, on CPU, waits for a peer.
    """
    compiled = jax.process_count() == 1

    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if not compiled:
            program.lower(*arguments).compile()  # the call below finds it in JAX's cache
            from_all("compiled")
            compiled = True
        return program(*arguments)

    return call


def to_host(tree: PyTree) -> PyTree:
    """Return a tree's arrays whole, as NumPy arrays, in every process; all must ask.

    Array by array, so that the devices hold one of them whole at a time.
    """

    def whole(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if spread and not leaf.is_fully_replicated:
            if in_host_memory(leaf.sharding):  # devices exchange what lies in their own memory
                leaf = jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def put(tree: PyTree, shardings: PyTree) -> PyTree:
    """Put arrays where they belong on the devices of all.

    Args:
      tree: arrays that every process has whole, or that lie on the devices of all already; what
        is where it belongs is not copied.
      shardings: a tree of Shardings that is a prefix of `tree`, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def piecewise(leaf: Any, sharding: Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        here = np.asarray(leaf)
        return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])

    def below(sharding: Sharding, branch: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: piecewise(leaf, sharding), branch)

    return jax.tree.map(below, shardings, tree, is_leaf=lambda x: isinstance(x, Sharding))


def _tidy_output(keep: bool) -> None:
    """Keep standard output for our own words, or for none: what libraries print goes to errors.

    Gloo announces each of its connections there, from below Python.
    """
    sys.stdout.flush()
    ours = os.dup(1) if keep else os.open(os.devnull, os.O_WRONLY)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", buffering=1)


def _check_counts(timeout: int) -> None:
    """Check what all were told, before anything waits for the devices of all."""
    state, store = _state(), _store()
    store.key_value_set(f"dmd2/told/{state.process_id}", str(state.num_processes))

    def told_to(number: int) -> int:
        return int(store.blocking_key_value_get(f"dmd2/told/{number}", timeout * 1000))

    numbers = range(told_to(0))
    told = [told_to(number) for number in numbers]
    if set(told) != {len(told)}:
        raise JoinError(
            f"the processes {list(numbers)} were told of {told} processes, expected the same "
            f"number each; correct DMD2_NUM_PROCESSES, or what stands in its place."
        )
    counts = from_all(jax.local_device_count())
    if len(set(counts)) > 1:
        raise JoinError(
            f"the processes have {counts} devices, expected equally many each, since each reads "
            f"an equal part of every batch; start them on machines of one kind."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return f"{lines[0]:.300}"


def _state() -> Any:
    # JAX has no public name for the store of its coordination service.
    from jax._src import distributed

    return distributed.global_state


def _store() -> Any:
    return _state().client
