"""Diversity over seeds: mean distance of samples of one class, real ones of that class being 1."""

import numpy as np

from dmd2_jax.config.refused import Refused
from dmd2_jax.metrics.contract.figures import Figure
from dmd2_jax.metrics.features.extractor import FeatureSet
from dmd2_jax.metrics.features.labels import label_distances, mean_distance

REAL, FAKE = ("features", "labels"), ("features", "labels")

FIGURES = {"seed_diversity": Figure("seed diversity", form="{:.2f}")}


def compute(
    real: FeatureSet, fake: FeatureSet, *, per_label: int = 500, seed: int = 0
) -> dict[str, float]:
    """Return how far apart seeds lead at a fixed class, as a share of what real images do.

        mean_c mean_(i != j in c) |f(y_i) - f(y_j)| / mean_c mean_(i != j in c) |f(x_i) - f(x_j)|

    over the classes c that both sides have twice. Near 1: as varied as the data; near 0: one image
    a class, whatever the noise, which FID and a precision alone do not tell from a good student.

    Args:
      real: features and labels.
      fake: features and labels of the same classes.
      per_label: samples of a class that are looked at, at most; 500 make 124,750 pairs.
      seed: of which ones, where there are more.

    Returns:
      seed_diversity >= 0, and seed_diversity_least, that of the least varied class.

    Raises:
      ValueError: if no class occurs twice on both sides, or the real samples of one are all equal.
    """
    ours, theirs = (label_distances(side, per_label, seed) for side in (fake, real))
    shared = sorted(set(ours) & set(theirs))
    if ours and not shared:
        raise Refused(
            f"the generated samples are of labels such as {next(iter(ours))}, of which the real "
            "side has none twice, expected the same classes on both sides; take the data that the "
            "network was trained on as the reference."
        )
    if flat := [label for label in shared if not theirs[label] > 0]:
        raise Refused(
            f"the real samples of class {flat[0]} all have the same features, expected different "
            "images; look at the data."
        )
    ratios = [ours[label] / theirs[label] for label in shared]
    whole = [mean_distance({label: side[label] for label in shared}) for side in (ours, theirs)]
    return {
        "seed_diversity": whole[0] / whole[1],
        "seed_diversity_least": float(np.min(ratios)),
    }
