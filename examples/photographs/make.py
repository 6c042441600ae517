"""Cut the photographs that come with scikit-image and scikit-learn into tiles, a folder a class.

    pip install scikit-image
    python -m examples.photographs.make --out=photographs

writes 400 tiles of 64 x 64 pixels for each of five photographs, photographs/cat/000.png and so on.
Nothing is downloaded: the pictures lie inside the two packages.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE, TILES = 64, 400


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tiles."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, metavar="DIR")
    out = Path(parser.parse_args(argv).out)
    temple, flower = load_sample_images().images
    photographs = {
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "flower": flower,
        "galaxies": skimage.data.hubble_deep_field(),
        "temple": temple,
    }
    random = np.random.RandomState(0)
    for name, pixels in photographs.items():
        (out / name).mkdir(parents=True)
        for i in range(TILES):
            top, left = (random.randint(length - SIDE) for length in pixels.shape[:2])
            tile = Image.fromarray(pixels[top : top + SIDE, left : left + SIDE])
            tile.save(out / name / f"{i:03d}.png")
    print(f"{out}: {TILES} tiles each of {', '.join(photographs)}")


if __name__ == "__main__":
    main()
