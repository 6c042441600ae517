"""The images that a text-to-image pipeline makes of prompts, for `dmd2 evaluate`."""

import functools
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dmd2_jax.data import Batch
from dmd2_jax.evaluate_options import EvaluateOptions
from dmd2_jax.families import stable_diffusion
from dmd2_jax.families.image_latents import check_finite, decode_latents
from dmd2_jax.families.pipeline_folder import read_pipeline_index
from dmd2_jax.runtime.sharding import batch_sharding, replicated
from dmd2_jax.sample import sample_noise
from dmd2_jax.sample_prompts import PromptOptions, pipeline_sampler
from dmd2_jax.text2image import open_pipeline, read_scheduler_config
from dmd2_jax.typing import Array, Params, PyTree

__all__ = ["PromptImages"]


class PromptImages:
    """Images of prompts, image i of prompt i modulo their number; see `Measured`.

    The label of an image is its prompt's number, so that diversity is that within a prompt. Image i
    depends on (seed, i, its prompt) alone, and is that of `dmd2 sample` with these prompts.
    """

    def __init__(self, options: EvaluateOptions, mesh: Mesh) -> None:
        """Open the pipeline and its U-Net.

        Args:
          options: pipeline, prompts and how to sample them.
          mesh: over which images are split.

        Raises:
          FileNotFoundError: if the pipeline or the file of prompts is missing.
          MissingPackageError: if transformers is not installed.
          ValueError: if an option, a prompt or a part of the pipeline is refused.
        """
        asked = PromptOptions(
            prompts=options.prompts,
            which=options.which,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            dtype=options.dtype or "float32",
        )
        prompts = asked.texts()
        self._num = options.num or len(prompts)
        self.texts = [prompts[i % len(prompts)] for i in range(self._num)]
        index = read_pipeline_index(options.pipeline)
        self._family, self._params = stable_diffusion.read(index.folder, dtype=asked.dtype)
        self._sampler = pipeline_sampler(
            self._family.denoiser, read_scheduler_config(index), index.class_name, asked
        )
        self._pipeline = open_pipeline(options.pipeline)
        self._prompts, self._seed, self._mesh, self._seconds = prompts, options.seed, mesh, 0.0
        size = min(options.batch_size or asked.batch_size, self._num)
        self._batch_size = math.ceil(size / mesh.size) * mesh.size
        self.key, self.name, self.conditional = "pipeline", str(options.pipeline), False
        self.resolution, self.channels = self._pipeline.resolution, 3
        self.step: int | None = None

    def __len__(self) -> int:
        return self._num

    def batches(self) -> Iterator[Batch]:
        """Sample and decode all images, and take the time of it without that of compilation."""
        whole = replicated(self._mesh)
        params = jax.device_put((self._params, self._pipeline.vae_params), whole)
        self._batch(params, 0)
        self._seconds = 0.0
        for begin in range(0, self._num, self._batch_size):
            start = time.perf_counter()
            images = self._batch(params, begin)
            self._seconds += time.perf_counter() - start
            count = min(self._batch_size, self._num - begin)
            names = [self.describe(i) for i in range(begin, begin + count)]
            check_finite(images[:count], names, self._pipeline.vae, "images")
            labels = np.arange(begin, begin + count, dtype=np.int32) % len(self._prompts)
            yield {"image": images[:count], "label": labels}

    def describe(self, index: int) -> str:
        """Return an image's number and prompt."""
        return f"image {index} of {self.name} ({self.texts[index]:.60})"

    def figures(self) -> dict[str, Any]:
        """Return number, U-Net calls an image, and seconds an image with text and autoencoder."""
        return {
            "num_samples": self._num,
            "nfe": self._sampler.nfe,
            "seconds_per_image": self._seconds / self._num,
        }

    def _batch(self, params: tuple[Params, Params], begin: int) -> np.ndarray:
        # The last batch is whole as the others are, so that one program serves all.
        indices = np.arange(begin, begin + self._batch_size)
        texts = [self._prompts[i % len(self._prompts)] for i in indices]
        split = functools.partial(batch_sharding, self._mesh)
        noise = sample_noise(
            self._seed,
            jax.device_put(indices, split()),
            self._sampler.num_noises,
            self._family.image_shape,
        )
        parts = {name: jnp.asarray(x) for name, x in self._pipeline.condition(texts).items()}
        cond: PyTree = self._family.cond(parts)
        latents = self._sampler.run(
            params[0], jax.device_put(noise, split(1)), jax.device_put(cond, split())
        )
        return np.asarray(_decode(self._pipeline.vae, params[1], latents))


@functools.partial(jax.jit, static_argnums=0)
def _decode(vae: Any, params: Params, latents: Array) -> Array:
    return decode_latents(vae, params, latents)
