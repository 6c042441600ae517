"""The photographs of the tutorial: tiles that `dmd2 new` takes as they are."""

from pathlib import Path

import pytest
from PIL import Image

from dmd2_jax.commands.new.look import look

make = pytest.importorskip(
    "examples.photographs.make", reason="scikit-image is not installed: pip install scikit-image"
)


def test_make_writes_tiles_of_real_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "TILES", 3)
    make.main([f"--out={tmp_path / 'photographs'}"])
    facts = look(str(tmp_path / "photographs"))
    assert facts.class_names == ("cat", "coffee", "flower", "galaxies", "temple")
    assert (facts.images, facts.channels) == (15, 3)
    assert (facts.sizes == 64).all()
    tile = Image.open(tmp_path / "photographs" / "cat" / "000.png")
    assert len(tile.getcolors(64 * 64) or ()) > 100  # a photograph, not a plain area
