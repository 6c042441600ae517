"""Checkpoints of s3://: what the bucket has at every moment, through the client of users."""

from typing import NamedTuple

import numpy as np
import pytest

from dmd2_jax.run.checkpoint import CheckpointError, Checkpoints
from dmd2_jax.run.staging import Staging
from dmd2_jax.runtime.integrity import UNFINISHED
from tests.buckets import contents, emulated_s3

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def bucket():
    with emulated_s3() as place:
        yield place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class State(NamedTuple):
    a: np.ndarray
    b: dict[str, np.ndarray]


def state(value):
    return State(np.full(3, value, np.float32), {"c": np.arange(4.0)})


def steps_of(place):
    return sorted({name.split("/")[0] for name in contents(place)})


def test_steps_come_and_go_and_are_read_again(bucket):
    place = f"{bucket}/come-and-go"
    with Checkpoints(place, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, state(step), {"n": step})
    assert steps_of(place) == ["3", "4"]
    with Checkpoints(place, keep=2) as checkpoints:
        assert checkpoints.all_steps() == [3, 4]
        restored, extra, step = checkpoints.restore(state(0))
        assert (restored.a == 4).all() and extra == {"n": 4} and step == 4
        checkpoints.save(5, state(5))
    with Checkpoints(place, read_only=True) as checkpoints:
        assert checkpoints.all_steps() == [4, 5]
        part = checkpoints.restore_part("b", state(0).b, step=4)
        assert (part.state["c"] == np.arange(4.0)).all()


def test_half_a_step_counts_for_nobody_and_goes(bucket):
    place = f"{bucket}/half"
    with Checkpoints(place) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    client, key = fsspec.core.url_to_fs(place)
    client.pipe_file(f"{key}/2/{UNFINISHED}", b"")
    with Checkpoints(place, read_only=True) as checkpoints:
        assert checkpoints.all_steps() == [1]
    with Checkpoints(place) as checkpoints:
        assert checkpoints.restore(state(0)).step == 1
    assert steps_of(place) == ["1"]


def test_a_damaged_step_is_set_aside_in_the_bucket(bucket):
    place = f"{bucket}/damaged"
    with Checkpoints(place) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    client, key = fsspec.core.url_to_fs(place)
    client.pipe_file(f"{key}/2/meta/metadata", b"{}")
    with Checkpoints(place) as checkpoints:
        assert checkpoints.restore(state(0)).step == 1
    assert steps_of(place) == ["1", "damaged-2"]


def test_an_upload_that_fails_is_said_at_the_next_wait_and_leaves_no_step(bucket, monkeypatch):
    place = f"{bucket}/fails"
    with Checkpoints(place) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.wait()
        client, _ = fsspec.core.url_to_fs(place)

        def full(*_, **__):
            raise OSError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(client, "put", full)
            checkpoints.save(2, state(2))
            with pytest.raises(CheckpointError, match=r"no room.*earlier checkpoints \[1\]"):
                checkpoints.wait()
        with Checkpoints(place, read_only=True) as there:
            assert there.all_steps() == [1]
        checkpoints.save(3, state(3))
    assert steps_of(place) == ["1", "2", "3"]


def test_several_processes_are_refused(bucket, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="of 2 processes, expected one"):
        Staging(f"{bucket}/two")
