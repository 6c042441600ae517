"""Arrays of a .npz: mapped or read, and what is refused before it is inflated."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.data.reading import npz

ARRAY = np.random.RandomState(0).randint(0, 256, (5, 4, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_open_npz_reads_the_arrays_that_are_wanted(save, tmp_path: Path) -> None:
    evil = np.array([None], object)
    save(tmp_path / "d.npz", arr_0=ARRAY, arr_1=np.asfortranarray(ARRAY[0]), other=evil)
    found = npz.open_npz(tmp_path / "d.npz", ("arr_0", "arr_1"))
    assert set(found) == {"arr_0", "arr_1"}
    np.testing.assert_array_equal(found["arr_0"], ARRAY)
    np.testing.assert_array_equal(found["arr_1"], ARRAY[0])
    assert isinstance(found["arr_0"], np.memmap) == (save is np.savez)


def test_open_npz_leaves_on_disk_what_is_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    np.savez(tmp_path / "stored.npz", arr_0=ARRAY)
    np.savez_compressed(tmp_path / "deflated.npz", arr_0=ARRAY)
    found = npz.open_npz(tmp_path / "stored.npz", ("arr_0",), limit=100)
    np.testing.assert_array_equal(found["arr_0"], ARRAY)
    with pytest.raises(ValueError, match=r"deflated\.npz .*more than .*save it with numpy\.savez"):
        npz.open_npz(tmp_path / "deflated.npz", ("arr_0",), limit=100)


def test_open_npz_refuses_a_flipped_bit_of_a_mapped_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", arr_0=ARRAY)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[content.index(ARRAY.tobytes()[:40]) + 7] ^= 1
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        npz.open_npz(tmp_path / "d.npz", ("arr_0",))


def test_npz_names_of_no_npz_are_none(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", arr_0=ARRAY, mu=ARRAY)
    (tmp_path / "x.npz").write_bytes(b"no zip")
    assert npz.npz_names(tmp_path / "d.npz") == {"arr_0", "mu"}
    assert npz.npz_names(tmp_path / "x.npz") == npz.npz_names(tmp_path / "absent.npz") == set()


def test_read_npz_refuses_more_than_the_limit_before_inflating(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", images=np.zeros((100, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"inflated, more than .*save it as images\.npy"):
        npz.read_npz(tmp_path / "d.npz", limit=2**20)


def test_read_npz_refuses_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_SMALL", 2**16)
    np.savez_compressed(tmp_path / "d.npz", images=np.zeros((100, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="may be a zip bomb"):
        npz.read_npz(tmp_path / "d.npz")
