"""Part after part through both libraries: `dmd2 verify`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from operator import methodcaller
from typing import Any

import jax
import numpy as np

from dmd2_jax.commands.verify import ours
from dmd2_jax.commands.verify.ours import PROMPTS, Arrays
from dmd2_jax.commands.verify.rows import HEADING, Report, Row, compare, only_ours
from dmd2_jax.commands.verify.subject import Subject
from dmd2_jax.commands.verify.theirs import Theirs, missing_packages
from dmd2_jax.config.refused import Refused, lacks
from dmd2_jax.data import MissingPackageError
from dmd2_jax.run.metrics import Progress
from dmd2_jax.sampling.samplers import sample_noise
from dmd2_jax.typing import PyTree

__all__ = ["verify"]

_IMAGES = 10.0
"""Images of several steps may differ by so many tolerances: errors of a step go on in the next."""


def verify(subject: Subject, tolerance: float) -> tuple[Report, dict[str, np.ndarray]]:
    """Compare the parts of a subject, and print a row as each is done.

    Args:
      subject: what is verified.
      tolerance: what a difference may reach, of the largest value of an array.

    Returns:
      The rows; and "dmd2_jax", "diffusers" -> images [n, h, w, 3] in [-1, 1], as far as there are.
    """
    lacking = missing_packages()
    theirs = None if lacking else Theirs(subject)
    print(theirs.versions if theirs else f"not installed: {', '.join(lacking)}")
    with (
        jax.default_matmul_precision("highest"),  # on accelerators that is not the default
        theirs.quiet() if theirs else nullcontext(),
        Progress(
            total=_pieces(subject, theirs), description="verifying", images_per_step=0
        ) as progress,
    ):
        check = _Check(subject, theirs, tolerance, progress, f"no {', '.join(lacking)}")
        print(HEADING)
        cond = check.condition() if subject.pipeline is not None else None
        latents = check.network(cond)
        if subject.pipeline is not None:
            check.autoencoder(latents)
    return Report(tuple(check.rows)), check.pictures


def _pieces(subject: Subject, theirs: Theirs | None) -> int:
    """Return how often progress is told: once a call of a network, an image or a part."""
    halves = 2 if subject.family.cond_shapes(1) is not None else 1
    pieces = len(ours.times_of(subject)) * halves
    if subject.pipeline is not None:
        pieces += len(PROMPTS) + len(subject.pipeline_index.text_parts) + 1
    return pieces * (2 if theirs else 1)


class _Check:
    """A verification under way.

    Attributes:
      rows: those of the parts that are done.
      pictures: the sampled images.
    """

    def __init__(
        self,
        subject: Subject,
        theirs: Theirs | None,
        tolerance: float,
        progress: Progress,
        why: str,
    ) -> None:
        """Begin; `why` nothing is compared, where `theirs` is None."""
        self.rows: list[Row] = []
        self.pictures: dict[str, np.ndarray] = {}
        self._subject, self._theirs, self._tolerance = subject, theirs, tolerance
        self._progress, self._done, self._why = progress, 0, why

    def condition(self) -> PyTree:
        """Return the condition of the sampled images: classes, or prompts that are compared."""
        subject = self._subject
        return self.text() if subject.pipeline_index.text_parts else ours.classes(subject)

    def text(self) -> Arrays | None:
        """Compare tokenizers, text encoders and what they make together.

        Returns:
          The condition of the prompts, in our numbers; None: an encoder is damaged, or there are
          no real tokens.
        """
        subject, theirs, features, drawn = self._subject, self._theirs, [], False
        texts = (*PROMPTS, "")
        for pair in subject.pipeline_index.text_parts:
            tokenizer, encoder = pair
            made = self._ours(tokenizer, partial(ours.tokens, subject, pair))
            if made is None:
                drawn, ids = True, ours.drawn_tokens(subject, encoder)
            else:
                ids = made["ids"]
                length = ids.shape[1]
                tokens = methodcaller("tokens", tokenizer, texts, length)
                self._row(tokenizer, made, tokens, tolerance=0.0)
            one = self._ours(encoder, partial(ours.encode, subject, encoder, ids))
            self._tell()
            if one is None:
                continue
            features.append(one.features)
            self._row(encoder, one.arrays, methodcaller("encode", encoder, ids))
            self._tell(theirs)
        cond = None
        if not drawn and len(features) == len(subject.pipeline_index.text_parts):
            cond = ours.condition(subject, features)
            known = {k: v for k, v in cond.items() if k != "time_ids"}
            self._row("prompts joined", known, lambda t: t.condition(PROMPTS))
        if theirs:
            theirs.close_text()
        return cond

    def network(self, cond: PyTree) -> np.ndarray | None:
        """Compare the network at five times; return our latents of the images, if there are."""
        subject = self._subject
        part = self._network_part
        shape = subject.family.image_shape
        x_t = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
        noise = self._noise() if cond is not None else None
        given = ours.drawn_condition(subject) if cond is None else cond
        made = self._ours(part, lambda: ours.network(subject, given, x_t, noise, self._tell))
        if made is None:
            return None
        arrays, latents = made
        times, halves = ours.times_of(subject), ours.halves(subject, given)

        def compute(other: Theirs) -> Arrays:
            network = other.network()
            computed = other.x_0(network, x_t, times, halves, self._tell)
            if noise is not None and cond is not None:
                self._their_images(other, network, cond)
            return computed

        self._row(part, arrays, compute)
        return latents

    def _their_images(self, other: Theirs, network: Any, cond: PyTree) -> None:
        """Sample their images while their network is there."""
        try:
            images = other.images(network, cond, self._tell)
        except Exception as error:  # of any class: it is theirs, and said in the images' row
            self._why = _said(error)
        else:
            self.pictures["diffusers"] = 2 * images - 1

    def autoencoder(self, latents: np.ndarray | None) -> None:
        """Compare the autoencoder both ways, and the sampled images."""
        subject = self._subject
        made = self._ours("vae", lambda: ours.through_autoencoder(subject, latents))
        self._tell()
        if made is None:
            return
        arrays, images = made
        self._row("vae", arrays, lambda t: t.autoencoder(ours.picture(subject)))
        self._tell(self._theirs)
        if images is None:
            why = "the network or a text encoder made nothing to sample with"
            self._add(Row("images", "not compared", None, None, why))
            return
        self.pictures = {"dmd2_jax": np.clip(images, -1, 1)} | self.pictures
        what = "of the prompts" if subject.pipeline_index.text_parts else "of the classes"
        unit = {what: np.clip(images / 2 + 0.5, 0, 1)}
        if "diffusers" not in self.pictures:
            self._add(only_ours("images", {what: images}, self._why))
            return
        other = {what: self.pictures["diffusers"] / 2 + 0.5}
        limit = _IMAGES * self._tolerance
        self._add(compare("images", unit, other, tolerance=limit, relative=False))

    def _noise(self) -> np.ndarray:
        subject, count = self._subject, len(PROMPTS)
        assert subject.sampler is not None  # which a pipeline has
        shape, steps = subject.family.image_shape, subject.sampler.num_noises
        if self._theirs is not None:
            return self._theirs.noise(shape, steps, count)
        return np.asarray(sample_noise(0, np.arange(count), steps, shape))

    @property
    def _network_part(self) -> str:
        """What the row of the network is called."""
        return "network" if self._subject.pipeline is None else self._subject.network.name

    def _ours(self, part: str, compute: Callable[[], Any]) -> Any:
        """Compute a part here; None: it cannot be, which becomes its row."""
        try:
            return compute()
        except MissingPackageError:
            why = lacks("tokenizing", "transformers", "text2image")
            self._add(Row(part, "not compared", None, None, why))
        except Refused as error:
            if part == self._network_part and self._subject.replaced:
                raise  # no part of the folder: weights that were named beside it
            self._add(Row(part, "damaged", None, None, str(error)))
        return None

    def _row(
        self,
        part: str,
        arrays: Arrays,
        compute: Callable[[Theirs], Arrays],
        tolerance: float | None = None,
    ) -> None:
        """Compute a part in diffusers, and add its row."""
        if self._theirs is None:
            self._add(only_ours(part, arrays, self._why))
            return
        try:
            other = compute(self._theirs)
        except Refused:
            raise
        except Exception as error:  # of any class: theirs is not ours to mend
            self._add(only_ours(part, arrays, _said(error)))
            return
        limit = self._tolerance if tolerance is None else tolerance
        self._add(compare(part, arrays, other, tolerance=limit))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(row, flush=True)

    def _tell(self, whether: object = True) -> None:
        if whether:
            self._done += 1
            self._progress.update(self._done)


def _said(error: Exception) -> str:
    return f"diffusers: {type(error).__name__}: {error!s:.200}"
