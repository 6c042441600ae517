from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.runtime import places


@pytest.mark.parametrize("path", ["run", "/tmp/run", "C:/run", "a:b/c", "odd:/name", "a//b"])
def test_local_is_the_path_itself(path):
    assert places.local(path) == Path(path)


@pytest.mark.parametrize("path", ["http://host/x", "ftp://host/x", "az://bucket/x", "hdfs://x"])
def test_check_place_names_what_is_read_and_written(path):
    with pytest.raises(Refused, match=r"expected a path of this machine, gs://BUCKET/\.\.\. or s3"):
        places.check_place(path)


def test_check_place_says_the_path_of_a_file_url():
    with pytest.raises(Refused, match=r"give /tmp/run\."):
        places.check_place("file:///tmp/run")


@pytest.mark.parametrize("path", [Path("gs://bucket/run"), "gs:/bucket/run"])
def test_check_place_refuses_a_lost_slash(path):
    with pytest.raises(Refused, match="expected gs://bucket/run; give it as text"):
        places.check_place(path)


@pytest.mark.parametrize("path", ["gs://", "s3:///"])
def test_check_place_refuses_no_bucket(path):
    with pytest.raises(Refused, match="names no bucket"):
        places.check_place(path)


@pytest.mark.parametrize("path,client", [("gs://bucket/x", "gcsfs"), ("s3://bucket/x", "s3fs")])
def test_check_place_names_the_extra_of_a_client_that_is_not_installed(path, client, monkeypatch):
    monkeypatch.setattr(places, "_installed", lambda package: False)
    with pytest.raises(Refused, match=rf"needs the package {client}, .*pip install .*\[cloud\]"):
        places.check_place(path)
