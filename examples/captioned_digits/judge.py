"""Judge images made from the captions of make.py: their classes, and their distance.

    python -m examples.captioned_digits.judge --data=DIR --workdir=RUN --prompts=FILE.jsonl
    python -m examples.captioned_digits.judge --data=DIR --images=samples/ --prompts=FILE.jsonl

A run is sampled, --num images of each prompt. Of a folder, image number i in the order of the names
was made from prompt number i; after the last prompt the first follows again. Images are RGB of
16 x 16 pixels; they are reduced to grey of 8 x 8, the mean of 2 x 2 pixels and three channels, and
named by a classifier that was trained on the digits of scikit-learn
(dmd2_jax/metrics/features/classifier.py). The distance is Fréchet's in that classifier's features,
to

    real      the real digits themselves
    route     the real digits after what generated images went through: enlarged, through the
              pipeline's autoencoder, reduced. Nothing but the diffusion model can be to blame for a
              distance to these.

A few hundred images inflate a distance: compare sets of one size, of 2,000 images or more.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dmd2_jax.data import digits
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.data.reading.text_lines import json_lines, text_of
from dmd2_jax.metrics.features.classifier import (
    Classifier,
    Training,
    real_fid_floor,
    real_statistics,
    train_classifier,
)
from dmd2_jax.metrics.features.images import open_images
from dmd2_jax.metrics.features.moments import FeatureStatistics, feature_statistics, fid
from dmd2_jax.recipe.tables import aligned
from dmd2_jax.runtime.platform import prepare_backend, user_cache
from dmd2_jax.sampling.conditions import Prompts
from dmd2_jax.sampling.images import SampledImages
from dmd2_jax.sampling.prompts import PromptSettings, run_models
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.typing import Array, Int, Shaped
from examples.captioned_digits.make import RESOLUTION, enlarge
from examples.captioned_digits.pipeline import reconstruct

__all__ = ["Judge", "Verdict", "agreement", "caption_classes", "open_judge", "reduce"]


class Verdict(NamedTuple):
    """What is said of some images.

    Attributes:
      classes: [n] the digit that each one looks like.
      fid_real: distance to the real digits.
      fid_route: distance to the real digits after enlarging, the autoencoder and reducing.
    """

    classes: Int[np.ndarray, " n"]
    fid_real: float
    fid_route: float


@dataclass(frozen=True)
class Judge:
    """Says of which class images are, and how far from the real ones.

    Attributes:
      classifier: of 8 x 8 grey digits.
      real, route: statistics of the two references.
      floor: distance of a random half of the real digits to the other half.
    """

    classifier: Classifier
    real: FeatureStatistics
    route: FeatureStatistics
    floor: float

    def __call__(self, images: Shaped[Array | np.ndarray, "n h w 3"]) -> Verdict:
        """Judge images of 16 x 16 pixels.

        Args:
          images: [n, 16, 16, 3], uint8, or float in [-1, 1]; n >= 2.

        Raises:
          ValueError: if they are of another size.
        """
        features, logits = self.classifier(reduce(images))
        statistics = feature_statistics(features)
        return Verdict(
            logits.argmax(axis=-1), fid(self.real, statistics), fid(self.route, statistics)
        )

    @property
    def route_to_real(self) -> float:
        """Distance of the references to each other: what enlarging and autoencoder alone cost."""
        return fid(self.real, self.route)


def open_judge(
    data: str | Path, cache: str | Path | None = None, training: Training | None = None
) -> Judge:
    """Train the classifier and put all real digits through the pipeline's autoencoder.

    Args:
      data: the folder that `examples.captioned_digits.make` wrote.
      cache: folder of trained classifiers; None: none.
      training: of the classifier; None: its defaults.
    """
    train, test = (digits.load(split=split) for split in ("train", "test"))
    classifier = train_classifier(train, test, cache_dir=cache, training=training)
    real = digits.load(split="all").images
    through = reduce(reconstruct(Path(data) / "pipeline" / "vae", enlarge(real)))
    statistics, features = real_statistics(classifier, train, test)
    route = feature_statistics(classifier(through)[0])
    return Judge(classifier, statistics, route, real_fid_floor(features)[0])


def reduce(images: Shaped[Array | np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h2 w2 1"]:
    """Return RGB images as grey images of half the size: means of 2 x 2 pixels and 3 channels.

    Args:
      images: [n, 16, 16, 3], uint8, or float in [-1, 1], which is first rounded to bytes as in a
        file.

    Raises:
      ValueError: if they are of another size.
    """
    if images.shape[1:] != (RESOLUTION, RESOLUTION, 3):
        raise ValueError(
            f"images have shape {images.shape}, expected [n, {RESOLUTION}, {RESOLUTION}, 3]; give "
            "decoded images, in NHWC."
        )
    image = np.asarray(images if images.dtype == np.uint8 else to_uint8(images))
    half = RESOLUTION // 2
    means = image.reshape(-1, half, 2, half, 2, 3).mean(axis=(2, 4, 5))
    return np.round(means).astype(np.uint8)[..., None]


def caption_classes(data: str | Path) -> dict[str, int]:
    """Return the class of every caption that make.py wrote to this folder."""
    classes = {}
    for name in ("prompts.jsonl", "prompts_heldout.jsonl"):
        file = Path(data) / name
        for where, entry in json_lines(file.read_bytes(), str(file)):
            classes[text_of(entry, where)] = int(entry["class"])
    return classes


def agreement(
    verdict: Verdict, captions: Sequence[str], classes: dict[str, int]
) -> dict[str, float]:
    """Return the share of images that look like the digit that their caption asks for.

    Args:
      verdict: of the images.
      captions: one an image.
      classes: of each caption.

    Returns:
      "all" and the digits "0" ... "9" that were asked for -> share, 0..1.

    Raises:
      ValueError: if there is not one caption an image, or one is unknown.
    """
    unknown = sorted(set(captions) - set(classes))
    if len(captions) != len(verdict.classes) or unknown:
        raise ValueError(
            f"{len(captions)} captions ({unknown[:3]} of them unknown) for {len(verdict.classes)} "
            "images, expected one for each, of those in prompts.jsonl or prompts_heldout.jsonl."
        )
    asked = np.array([classes[text] for text in captions])
    right = verdict.classes == asked
    each = {str(label): float(right[asked == label].mean()) for label in np.unique(asked)}
    return {"all": float(right.mean()), **each}


def main() -> None:
    """Judge a folder of images and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="what make.py wrote")
    parser.add_argument("--images", default="", metavar="PATH", help="folder or zip of images")
    parser.add_argument("--workdir", default="", metavar="RUN", help="a run to sample instead")
    parser.add_argument("--which", choices=("teacher", "student"), help="of the run")
    parser.add_argument("--ema", type=float, help="the student's average with this decay")
    parser.add_argument("--num", type=int, default=25, help="images a prompt of a run; default 25")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="a .jsonl of prompts")
    parser.add_argument("--json", default="", help="write the figures here too")
    arguments = parser.parse_args()
    prepare_backend()
    if bool(arguments.images) == bool(arguments.workdir):
        parser.error("expected one of --images and --workdir")
    file = Path(arguments.prompts)
    texts = [text_of(entry, where) for where, entry in json_lines(file.read_bytes(), str(file))]
    if arguments.workdir:
        images = _sampled(arguments, texts)
        captions = [text for text in texts for _ in range(arguments.num)]
    else:
        source = open_images(arguments.images)
        images = source.examples(np.arange(len(source)))["image"]
        captions = [texts[i % len(texts)] for i in range(len(images))]
    judge = open_judge(arguments.data, user_cache() / "classifiers")
    verdict = judge(images)
    figures = {
        "images": float(len(images)),
        "fid to real": verdict.fid_real,
        "fid to real by the same route": verdict.fid_route,
        "fid of that route alone": judge.route_to_real,
        "fid of half the real to the other half": judge.floor,
        **{
            f"class as asked, {name}": share
            for name, share in agreement(verdict, captions, caption_classes(arguments.data)).items()
        },
    }
    print(aligned([(name, f"{value:.4g}") for name, value in figures.items()]))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


def _sampled(arguments: argparse.Namespace, texts: Sequence[str]) -> np.ndarray:
    """Sample a run: [prompts * num, h, w, 3], a prompt's images one after another."""
    run = open_run(arguments.workdir, arguments.which, arguments.ema)
    model = run_models(run, PromptSettings())(run)
    assert model.pipeline is not None  # which a model of prompts has
    return SampledImages(
        "samples",
        run.name,
        model,
        Prompts(model.pipeline, texts, each=arguments.num),
        num=arguments.num * len(texts),
        batch_size=100,
        seed=0,
        timed=False,
    ).all()


if __name__ == "__main__":
    main()
