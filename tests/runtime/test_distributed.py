"""Finding one's place; joining the others; talk within one process; a parent that explains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.runtime import distributed
from dmd2_jax.runtime.distributed import (
    from_all,
    from_first,
    on_first,
    put,
    to_host,
)
from dmd2_jax.runtime.processes import JoinError, Place, find_place

ALL = {"DMD2_COORDINATOR": "host:1234", "DMD2_NUM_PROCESSES": "4", "DMD2_PROCESS_ID": "3"}


def test_find_place_reads_the_environment() -> None:
    assert find_place(Place(), ALL) == Place("host:1234", 4, 3)


def test_find_place_prefers_flags() -> None:
    assert find_place(Place(process_id=0), ALL) == Place("host:1234", 4, 0)


@pytest.mark.parametrize("environment", [{}, {"DMD2_DISTRIBUTED": "0"}, {"DMD2_PROCESS_ID": ""}])
def test_find_place_is_none_for_one_process(environment: dict[str, str]) -> None:
    assert find_place(Place(), environment) is None


def test_find_place_leaves_it_to_jax() -> None:
    assert find_place(Place(), {"DMD2_DISTRIBUTED": "1"}) == Place()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"DMD2_NUM_PROCESSES": ""}, "expected all three or none"),
        ({"DMD2_PROCESS_ID": "4"}, "0 <= process id < number of processes"),
        ({"DMD2_PROCESS_ID": "-1"}, "0 <= process id < number of processes"),
        ({"DMD2_NUM_PROCESSES": "four"}, "0 <= process id < number of processes"),
        ({"DMD2_COORDINATOR": "host"}, "HOST:PORT"),
        ({"DMD2_COORDINATOR": ":99"}, "HOST:PORT"),
    ],
)
def test_find_place_refuses_what_does_not_fit(changes: dict[str, str], expected: str) -> None:
    with pytest.raises(JoinError, match=expected):
        find_place(Place(), ALL | changes)


def test_find_place_refuses_an_unknown_switch() -> None:
    with pytest.raises(JoinError, match="DMD2_DISTRIBUTED=yes"):
        find_place(Place(), {"DMD2_DISTRIBUTED": "yes"})


def test_one_process_talks_to_itself() -> None:
    assert from_all({"a": 1}) == [{"a": 1}]
    assert from_first(lambda: 3) == 3
    assert on_first(lambda: "made") == "made"


def test_what_all_have_heard_leaves_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store(dict[str, str]):
        """Of two processes, of which the other one says the same."""

        def key_value_set(self, key: str, value: str) -> None:
            self[key.removesuffix("1") + "0"] = self[key] = value

        def blocking_key_value_get(self, key: str, wait: int) -> str:
            return self[key]

        def key_value_delete(self, key: str) -> None:
            del self[key]

    store = Store()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    monkeypatch.setattr(distributed, "_said", [])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for number in range(5):
        assert from_all(number) == [number, number]
    (own,) = (key for key in store if key.endswith("/1"))
    assert json.loads(store[own]) == 4


def test_from_first_raises_what_was_raised() -> None:
    with pytest.raises(KeyError, match="lost"):
        from_first(lambda: {}["lost"])


def test_put_and_to_host_keep_the_numbers() -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {"a": jnp.arange(4.0), "b": np.arange(6).reshape(2, 3)}
    placed = put(tree, split)
    assert placed["a"].sharding == split
    for name, array in to_host(placed).items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tree[name])


JOINING = """
import os, signal, sys, time
from dmd2_jax.runtime import distributed
from dmd2_jax.runtime.distributed import join
from dmd2_jax.runtime.processes import JoinError, Place
from dmd2_jax.runtime.supervisor import supervise
supervise("Do it again.")
if sys.argv[3] == "dies" and sys.argv[2] == "0":  # when all have come, and before they agree
    distributed._check_counts = lambda timeout: os.kill(os.getpid(), signal.SIGKILL)
try:
    join(Place(sys.argv[1], 2, int(sys.argv[2])))
except (JoinError, ConnectionError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print("joined", file=sys.stderr, flush=True)
time.sleep(60)
"""


def joining(*devices: int, join_seconds: int = 60, first: str = "") -> list[subprocess.Popen]:
    """Start processes of a run of two, with so many devices each; the first one lives or dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"DMD2_JOIN_SECONDS": str(join_seconds), "DMD2_HEARTBEAT_SECONDS": "10"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", JOINING, coordinator, str(number), first],
            env=os.environ
            | told
            | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, count in enumerate(devices)
    ]


def test_join_refuses_unequal_numbers_of_devices() -> None:
    for process in joining(1, 2):
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        assert "JoinError: the processes have [1, 2] devices, expected equally many" in errors


def test_process_whose_others_never_come_ends_with_a_message() -> None:
    # XLA aborts it inside of jax.distributed.initialize; its parent has been told what to say.
    [process] = joining(1, join_seconds=3)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "process 0 could not join the others, expected 2 processes" in errors
    assert "within 3 seconds (DMD2_JOIN_SECONDS)" in errors and "Do it again." in errors
    assert "most likely died" not in errors


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child outlives its parent")
def test_death_of_the_first_process_ends_the_others_with_a_message() -> None:
    first, second = joining(1, 1)
    for process in (first, second):
        assert process.stderr is not None
        assert "joined\n" in iter(process.stderr.readline, "")
    first.kill()
    _, errors = second.communicate(timeout=100)
    first.communicate()
    assert second.returncode == 1
    assert "another process of this run has most likely died" in errors
    assert "Do it again." in errors


def test_death_of_the_first_process_while_they_join_is_not_called_a_failure_to_come() -> None:
    first, second = joining(1, 1, first="dies")
    _, errors = second.communicate(timeout=100)
    first.communicate()
    assert second.returncode == 1
    # XLA aborts it, or tells it in an error: whichever comes first.
    assert "another process of this run has most likely died" in errors
    assert "Do it again." in errors or "start all processes again" in errors
    assert "could not join" not in errors and "cannot join" not in errors


SUPERVISED = """
import os, signal, sys, time
from dmd2_jax.runtime.supervisor import supervise
supervise("Do it again.")
print(os.getpid(), flush=True)
{body}
"""


def supervised(body: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SUPERVISED.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_supervise_explains_an_abort() -> None:
    _, errors = (process := supervised("os.abort()")).communicate(timeout=60)
    assert process.returncode == 1
    assert "another process of this run has most likely died" in errors
    assert "Do it again." in errors


def test_supervise_returns_the_exit_code() -> None:
    process = supervised("sys.exit(75)")
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "")


def test_supervise_passes_signals_on() -> None:
    body = "signal.signal(signal.SIGTERM, lambda n, f: os._exit(9)); print('x', flush=True)\n"
    process = supervised(body + "time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 9
    process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's service is Linux's")
def test_supervise_leaves_no_child_behind_when_it_is_killed() -> None:
    process = supervised("time.sleep(60)")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)
    process.communicate()


def alive(number: int) -> bool:
    """Return whether a process runs; one that nobody has waited for has ended all the same."""
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_alive_knows_this_process() -> None:
    assert alive(os.getpid())
