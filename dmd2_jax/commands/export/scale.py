"""How the guidance scale that a student takes goes into what is written: as an input, or folded."""

from collections.abc import Callable
from typing import NamedTuple

from dmd2_jax.commands.export.command import Options
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.stable_diffusion.family import StableDiffusionFamily
from dmd2_jax.recipe.guidance import baked, chosen_scale, has_scale_input, input_scale, scale_range
from dmd2_jax.recipe.open import Family
from dmd2_jax.sampling.runs import Run
from dmd2_jax.typing import Params

__all__ = ["Scaled", "open_scale"]


class Scaled(NamedTuple):
    """A student's network as it is written.

    Attributes:
      load: reads its weights.
      scale: the one that an input has by default; None: the network takes none.
      ends: the range of an input; None: it is not known, or there is none.
      model: the network with an input, where the run's has none.
      rows: what a README.md has to say of it.
    """

    load: Callable[[], Params]
    scale: float | None = None
    ends: tuple[float, float] | None = None
    model: PublishedModel | None = None
    rows: tuple[tuple[str, str], ...] = ()


def open_scale(run: Run, family: Family, options: Options) -> Scaled:
    """Choose how a run's network is written, reading no weights.

    Args:
      run: the run, with the network that is exported.
      family: its network.
      options: what is asked for.

    Raises:
      Refused: if the scale is out of the range or none is taken, or it has to be folded in and none
        is given.
    """
    asked, ends = options.guidance, scale_range(run.config.distill)
    if run.which != "student":
        ends = None
    if ends is None:
        if asked is not None:
            chosen_scale({}, asked)  # which says why
        usual = input_scale(family) if run.which == "student" else None
        return Scaled(run.load, usual)
    scale = chosen_scale(run.config.distill, asked)
    if has_scale_input(family):
        return Scaled(run.load, scale, ends)
    if options.lora:
        raise Refused(
            f"--lora of {options.workdir}, whose student takes a guidance scale by weights that "
            "are no adapters, expected a whole network; leave --lora away."
        )
    if asked is None and isinstance(family, StableDiffusionFamily) and not options.single_file:
        unet = family
        return Scaled(lambda: unet.to_scale_input(run.load()), scale, ends, unet.with_scale_input())
    if asked is None:
        low, high = ends
        raise Refused(
            f"{options.workdir} has a student that takes guidance scales {low:g}..{high:g}, and "
            "what is written has no input for one, expected a scale; give --guidance="
            f"{(low + high) / 2:g}, and export a folder for each that is wanted."
        )
    row = ("written at", f"guidance {scale:g}")
    return Scaled(lambda: baked(run.load(), family, scale), rows=(row,))
