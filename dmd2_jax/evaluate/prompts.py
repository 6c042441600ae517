"""The images that a text-to-image pipeline makes of prompts, for `dmd2 evaluate`."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmd2_jax.config.refused import Refused
from dmd2_jax.data import Batch
from dmd2_jax.evaluate.options import EvaluateOptions
from dmd2_jax.evaluate.targets import Target, run_targets
from dmd2_jax.families.published.pipeline import read_pipeline_index
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.families.stable_diffusion.family import StableDiffusionFamily
from dmd2_jax.runtime.sharding import batch_sharding, replicated
from dmd2_jax.sampling.prompts import PromptOptions, pipeline_sampler, run_sampler
from dmd2_jax.sampling.samplers import Sampler, sample_noise
from dmd2_jax.sampling.text_run import open_text_run
from dmd2_jax.text2image.image_latents import check_finite, decode_latents
from dmd2_jax.text2image.pipeline import TextToImage, open_pipeline, read_scheduler_config
from dmd2_jax.typing import Array, Params, PyTree

__all__ = ["PromptImages", "PromptModel", "pipeline_images", "text_run_images"]

_BATCH = 4


class PromptModel(NamedTuple):
    """A text-to-image model.

    Attributes:
      pipeline: everything but the U-Net.
      family: the U-Net.
      sampler: from noise to latents.
      load: reads the U-Net's weights.
    """

    pipeline: TextToImage
    family: StableDiffusionFamily
    sampler: Sampler
    load: Callable[[], Params]


class PromptImages:
    """Images of prompts, image i of prompt i modulo their number; see `Measured`.

    The label of an image is its prompt's number, so that diversity is that within a prompt. Image i
    depends on (seed, i, its prompt) alone, and is that of `dmd2 sample` with these prompts.
    """

    def __init__(
        self,
        key: str,
        name: str,
        model: PromptModel,
        prompts: Sequence[str],
        options: EvaluateOptions,
        mesh: Mesh,
        step: int | None = None,
    ) -> None:
        """Take the model; its U-Net's weights are not loaded yet.

        Args:
          key: see `Measured`.
          name: see `Measured`.
          model: what makes the images.
          prompts: of what.
          options: num, seed and batch_size count.
          mesh: over which images are split.
          step: see `Measured`.
        """
        self.key, self.name, self.step, self.conditional = key, name, step, False
        self.resolution, self.channels = model.pipeline.resolution, 3
        self._model, self._prompts = model, prompts
        self._num = options.num or len(prompts)
        self.texts = [prompts[i % len(prompts)] for i in range(self._num)]
        self._seed, self._mesh, self._seconds = options.seed, mesh, 0.0
        size = min(options.batch_size or _BATCH, self._num)
        self._batch_size = math.ceil(size / mesh.size) * mesh.size

    def __len__(self) -> int:
        return self._num

    def batches(self) -> Iterator[Batch]:
        """Sample and decode all images, and take the time of it without that of compilation."""
        whole = replicated(self._mesh)
        params = jax.device_put((self._model.load(), self._model.pipeline.vae_params), whole)
        self._batch(params, 0)
        self._seconds = 0.0
        for begin in range(0, self._num, self._batch_size):
            start = time.perf_counter()
            images = self._batch(params, begin)
            self._seconds += time.perf_counter() - start
            count = min(self._batch_size, self._num - begin)
            names = [self.describe(i) for i in range(begin, begin + count)]
            check_finite(images[:count], names, self._model.pipeline.vae, "images")
            labels = np.arange(begin, begin + count, dtype=np.int32) % len(self._prompts)
            yield {"image": images[:count], "label": labels}

    def describe(self, index: int) -> str:
        """Return an image's number and prompt."""
        return f"image {index} of {self.name} ({self.texts[index]:.60})"

    def figures(self) -> dict[str, Any]:
        """Return number, U-Net calls an image, and seconds an image with text and autoencoder."""
        return {
            "num_samples": self._num,
            "nfe": self._model.sampler.nfe,
            "seconds_per_image": self._seconds / self._num,
        }

    def _batch(self, params: tuple[Params, Params], begin: int) -> np.ndarray:
        # The last batch is whole as the others are, so that one program serves all.
        indices = np.arange(begin, begin + self._batch_size)
        texts = [self._prompts[int(i) % len(self._prompts)] for i in indices]
        split = functools.partial(batch_sharding, self._mesh)
        noise = sample_noise(
            self._seed,
            jax.device_put(indices, split()),
            self._model.sampler.num_noises,
            self._model.family.image_shape,
        )
        parts = {name: jnp.asarray(x) for name, x in self._model.pipeline.condition(texts).items()}
        cond: PyTree = self._model.family.cond(parts)
        latents = self._model.sampler.run(
            params[0], jax.device_put(noise, split(1)), jax.device_put(cond, split())
        )
        return np.asarray(_decode(self._model.pipeline.vae, params[1], latents))


def pipeline_images(options: EvaluateOptions, mesh: Mesh) -> PromptImages:
    """Open a pipeline.

    Args:
      options: pipeline, prompts and how to sample them.
      mesh: the devices.

    Raises:
      FileNotFoundError: if the pipeline or the file of prompts is missing.
      MissingPackageError: if transformers is not installed.
      ValueError: if an option, a prompt or a part of the pipeline is refused.
    """
    asked = _asked(options, options.which)
    texts = asked.texts()
    index = read_pipeline_index(options.pipeline)
    family, params = stable_diffusion.read(index.folder, dtype=asked.dtype or "float32")
    scheduler = read_scheduler_config(index)
    sampler = pipeline_sampler(family.denoiser, scheduler, index.class_name, asked)
    model = PromptModel(open_pipeline(options.pipeline), family, sampler, lambda: params)
    return PromptImages("pipeline", str(options.pipeline), model, texts, options, mesh)


def text_run_images(options: EvaluateOptions, mesh: Mesh) -> Iterator[PromptImages]:
    """Open what the flags name of a text-to-image model's run, each with the run's pipeline.

    Args:
      options: workdir and prompts, and how to sample them.
      mesh: the devices.

    Yields:
      The sets of images.

    Raises:
      FileNotFoundError: if the pipeline or the file of prompts is missing.
      MissingPackageError: if transformers is not installed.
      ValueError: if an option or prompt is refused, or the run has no such weights.
    """
    if not options.workdir or not options.prompts:
        raise Refused(
            f"{options.workdir or options.config} is of a text-to-image model, expected --workdir "
            "and --prompts=FILE of what to draw (.txt, .jsonl or .parquet); add them, or give "
            "--pipeline of what `dmd2 export` wrote."
        )
    targets = run_targets(options)
    if options.weights:
        targets = [Target(options.which or targets[-1].which, options.which or targets[-1].which)]
    pipeline: TextToImage | None = None
    for key, which, ema, step in targets:
        asked = _asked(options, which)
        texts = asked.texts()
        run = open_text_run(
            options.workdir,
            which=which,
            ema=ema,
            weights=options.weights,
            checkpoint=step,
            dtype=asked.dtype,
        )
        if pipeline is None:
            pipeline = open_pipeline(run.base.folder, latent_side=run.family.image_shape[0])
        model = PromptModel(pipeline, run.family, run_sampler(run, asked), run.load)
        name = f"checkpoint {step} of {options.workdir}" if run.file is None else str(run.file)
        yield PromptImages(key, name, model, texts, options, mesh, step)


def _asked(options: EvaluateOptions, which: str | None) -> PromptOptions:
    return PromptOptions(
        prompts=options.prompts,
        which=which,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        dtype=options.dtype or "",
    )


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae: Any, params: Params, latents: Array) -> Array:
    return decode_latents(vae, params, latents)
