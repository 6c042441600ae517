"""A run of a text-to-image model, opened with the pipeline that it was made from."""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component_config
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.published.pipeline import PipelineIndex, read_pipeline_index
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.families.stable_diffusion.family import StableDiffusionFamily
from dmd2_jax.recipe.open import build_family
from dmd2_jax.run.folder import read_run
from dmd2_jax.sampling.samplers import checkpoint_params, load_run, run_recipe
from dmd2_jax.typing import Params

__all__ = ["FAMILY", "TextRun", "is_text_run", "open_text_run"]

FAMILY = "stable_diffusion"
"""The value of config.model.family of such runs."""


class TextRun(NamedTuple):
    """A run and what it names.

    Attributes:
      workdir: its folder.
      which: "teacher" or "student", whose weights are meant.
      config: its config.
      family: the U-Net.
      base: the pipeline that has everything but the U-Net.
      file: of the weights; None: they are in a checkpoint.
      step: of the checkpoint; None: they are in the file.
      ema: the decay of the student's average that is meant; None: the student itself.
    """

    workdir: Path
    which: str
    config: ConfigDict
    family: StableDiffusionFamily
    base: PipelineIndex
    file: Path | None
    step: int | None
    ema: float | None

    def load(self) -> Params:
        """Read the weights.

        Raises:
          ValueError: if they are damaged or of another network.
          CheckpointError: if there is no such checkpoint.
        """
        if self.file is not None:
            return self.family.load(self.file)
        return checkpoint_params(self.workdir, self.step, ema=self.ema)[0]


def is_text_run(workdir: str | Path) -> bool:
    """Whether a run folder is of a text-to-image model.

    Raises:
      ValueError: if it is no run folder.
    """
    return read_run(workdir)[1]["model"].get("family") == FAMILY


def open_text_run(
    workdir: str | Path,
    *,
    which: str | None = None,
    ema: float | None = None,
    weights: str = "",
    checkpoint: int | None = None,
    pipeline: str = "",
    dtype: str = "",
) -> TextRun:
    """Open a run folder of a text-to-image model, reading no weights.

    Args:
      workdir: what train-teacher or distill wrote.
      which, ema, weights: see `sample.load_run`.
      checkpoint: the step of a kept checkpoint to take the weights from; None: the run's export.
      pipeline: folder of the pipeline that has everything but the U-Net; "": the run's.
      dtype: of the computation, "float32" or "bfloat16"; "": the run's.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if there is no such run, it has no such weights, or the pipeline is of another
        network.
    """
    trained, chosen, config = run_recipe(workdir, which, ema)
    if config.model.family != FAMILY:
        raise Refused(
            f"{workdir} holds a run of model.family={config.model.family!r}, expected {FAMILY!r}; "
            "`dmd2 sample` draws its classes, `dmd2 convert` writes its weights."
        )
    if checkpoint is not None and (weights or chosen != trained):
        raise Refused(
            f"--checkpoint={checkpoint} together with --weights or --which={chosen}, expected the "
            f"{trained} that the run in {workdir} trains; leave the others away."
        )
    file = None if checkpoint is not None else load_run(workdir, which, ema, weights)[-1]
    if dtype:
        config = config.copy_and_resolve_references()
        config.model.dtype = dtype
    family = build_family(config)
    assert isinstance(family, StableDiffusionFamily)  # which config.model.family names
    base = _base(pipeline or config.model.pipeline, family)
    return TextRun(Path(workdir), chosen, config, family, base, file, checkpoint, ema)


def _base(pipeline: str, family: StableDiffusionFamily) -> PipelineIndex:
    """Open the pipeline's index and refuse one whose U-Net is another network."""
    if not Path(pipeline or "-").expanduser().is_dir():
        raise Refused(
            f"the run's pipeline {pipeline!r} is no folder, expected that of a diffusers pipeline, "
            "whose text encoders and autoencoder are used; give --pipeline=DIR."
        )
    index = read_pipeline_index(pipeline)
    unet = read_component_config(index.part("unet"))
    theirs = PublishedModel.from_config(
        unet, expected=index.expected("unet"), classes=CLASSES
    ).tensor_shapes()
    if theirs != family.tensor_shapes():
        raise Refused(
            f"{pipeline}/unet is another network than the run's, expected the one that it was made "
            "from; give its pipeline by --pipeline=DIR."
        )
    return index
