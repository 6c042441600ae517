"""Run folders opened for their weights: the config read once, the network built once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import Size
from dmd2_jax.recipe.critic_steps import critic_shapes
from dmd2_jax.recipe.guidance import chosen_scale, guided_part_shapes, load_student, scale_range
from dmd2_jax.recipe.lora import part_shapes, player_adapters, whole_part
from dmd2_jax.recipe.open import Family, at_size, build_family, check, recorded_config
from dmd2_jax.recipe.teacher import load_teacher
from dmd2_jax.recipe.weights_file import teacher_file, weights_file
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.run.exported import BEST
from dmd2_jax.run.folder import read_run
from dmd2_jax.run.loop import CHECKPOINTS
from dmd2_jax.run.sealed_config import run_identity
from dmd2_jax.runtime.distributed import say
from dmd2_jax.runtime.integrity import params_digest, read_manifest, step_folders
from dmd2_jax.runtime.places import path_of
from dmd2_jax.typing import Params

__all__ = ["Run", "checkpoint_params", "open_run", "read_run_folder"]


class Run(NamedTuple):
    """A run folder, with the one of its networks that is meant.

    Attributes:
      workdir: the folder.
      trained: "teacher" or "student", which the run trains.
      config: its config.
      family: the network.
      which: "teacher" or "student", whose weights are meant.
      ema: the decay of the student's average that is meant; None: the student itself.
      file: of the weights; None: they are in a checkpoint.
      step: of the checkpoint; None: they are in the file.
      merged: whether the config's teacher is meant, with its LoRA.
      best: whether the best weights of what the run trains are meant, by its `log.stop_when`.
    """

    workdir: Path
    trained: str
    config: ConfigDict
    family: Family
    which: str
    ema: float | None = None
    file: Path | None = None
    step: int | None = None
    merged: bool = False
    best: bool = False

    @property
    def key(self) -> str:
        """What the weights are called in front of figures, but for the step of a checkpoint."""
        if self.best:
            return "best"
        return self.which if self.ema is None else f"{self.which}_ema_{self.ema:g}"

    @property
    def name(self) -> str:
        """What the weights are called in messages: their file, or the checkpoint."""
        if self.file is not None:
            return str(self.file)
        return f"checkpoint {self.step} of {self.workdir}"

    def at(self, size: Size) -> "Run":
        """Return the run with its network for images of another size; nothing is read.

        Args:
          size: as `config.model.resolution` has it, of pixels or of latents.

        Raises:
          Refused: if the network does not take it.
        """
        config = at_size(self.config, size)
        return self._replace(config=config, family=build_family(config))

    def choose(
        self,
        which: str | None = None,
        ema: float | None = None,
        *,
        weights: str = "",
        checkpoint: int | None = None,
    ) -> "Run":
        """Return the run with another of its networks; nothing is read.

        Args:
          which: "teacher" or "student"; None is the one that the run trains; "best": that too, with
            the weights that were the best by the figure its `log.stop_when` has patience for.
          ema: the decay of the student's average to use; None is the student itself.
          weights: a file of weights (docs/weights.md) to use instead of the run's.
          checkpoint: the step of a kept checkpoint to take the weights from; None: the export.

        Raises:
          Refused: if the run has no such network, average or file.
        """
        if best := which == "best":
            which = self.trained
            _check_best(self, ema, weights, checkpoint)
        which = which or self.trained
        _check_network(self, which, ema)
        if checkpoint is not None and (weights or which != self.trained):
            raise Refused(
                f"checkpoint={checkpoint} together with weights of another file or which={which}, "
                f"expected the {self.trained} that the run in {self.workdir} trains; leave the "
                "others away."
            )
        file = None
        if checkpoint is None:
            if weights:
                file = weights_file(weights, f"{which}.safetensors")
            elif which == self.trained:
                name = which if ema is None else f"{which}_ema_{ema:g}"
                name = BEST if best else f"{name}.safetensors"
                file = weights_file(str(self.workdir), name)
            else:
                file = teacher_file(self.config)
        merged = not weights and which != self.trained
        return self._replace(
            which=which, ema=ema, file=file, step=checkpoint, merged=merged, best=best
        )

    def load(self) -> Params:
        """Read the weights.

        Raises:
          ValueError: if they are damaged or of another network.
          CheckpointError: if there is no such checkpoint, or it is damaged.
        """
        if self.merged:
            params = load_teacher(self.config, self.family)
        elif self.file is not None:
            scale = self.which == "student" and scale_range(self.config.distill)
            params = load_student(self.family, self.file) if scale else self.family.load(self.file)
        else:
            return _restore(self, self.step)[0]
        if self.which != self.trained and self.file == teacher_file(self.config):
            _say_if_another(self, params)
        return params

    def scale(self, asked: float | None = None) -> float | None:
        """Return the guidance scale that the network takes as an input; None: it takes none.

        Args:
          asked: by the user; of a teacher it is none of the network's.

        Raises:
          Refused: if it is out of the student's range, or the student takes none.
        """
        return chosen_scale(self.config.distill, asked) if self.which == "student" else None

    def checkpoints(self) -> Sequence[int]:
        """Return the steps of the kept checkpoints."""
        with Checkpoints(self.workdir / CHECKPOINTS, read_only=True) as kept:
            return kept.all_steps()


def open_run(
    workdir: str | Path,
    which: str | None = None,
    ema: float | None = None,
    *,
    weights: str = "",
    checkpoint: int | None = None,
    dtype: str = "",
) -> Run:
    """Open a run folder, reading no weights.

    Args:
      workdir: what train-teacher or distill wrote.
      which, ema, weights, checkpoint: see `Run.choose`.
      dtype: of the computation, "float32" or "bfloat16"; "": the run's.

    Raises:
      Refused: if there is no run, or it has no such weights.
    """
    return read_run_folder(workdir, dtype=dtype).choose(
        which, ema, weights=weights, checkpoint=checkpoint
    )


def checkpoint_params(
    workdir: str | Path, step: int | None = None, *, part: str = "", ema: float | None = None
) -> tuple[Params, int]:
    """Read the weights alone from a checkpoint of a run; nothing of the optimiser is built.

    Low-rank adapters are merged with the weights of their run's teacher.

    Args:
      workdir: what train-teacher or distill wrote.
      step: which checkpoint; None is the newest good one.
      part: which branch of the state, such as "critic.params"; by default what the run exports:
        "generator.params" of a student, "ema" of a teacher.
      ema: the decay of the student's average to read instead.

    Returns:
      (weights, step).

    Raises:
      ValueError: if there is no run, or it has no such part.
      CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    run = read_run_folder(workdir)
    _check_network(run, run.trained, ema)
    return _restore(run._replace(ema=ema), step, part)


def read_run_folder(workdir: str | Path, *, dtype: str = "") -> Run:
    """Read a run folder's config and build its network; `Run.choose` then finds the weights.

    Args:
      workdir: what train-teacher or distill wrote.
      dtype: of the computation, "float32" or "bfloat16"; "": the run's.

    Raises:
      Refused: if there is no run.
    """
    command, values = read_run(workdir)
    config = recorded_config(values)
    check(config)
    if dtype:
        config = config.copy_and_resolve_references()
        config.model.dtype = dtype
    trained = "teacher" if command == "train-teacher" else "student"
    return Run(path_of(workdir), trained, config, build_family(config), trained)


def _say_if_another(run: Run, teacher: Params) -> None:
    """Say it where the teacher that was found is not the one that the student learned from."""
    for folder in step_folders(run.workdir / CHECKPOINTS).values():
        try:
            recorded = read_manifest(folder)["extra"]["teacher"]["digest"]
        except (ValueError, KeyError, TypeError):
            continue  # damaged, or of a release that recorded none
        if recorded != params_digest(teacher):
            say(
                f"{run.file} has other weights than the teacher of the run in {run.workdir} had: "
                "figures and pictures of the teacher are of these."
            )
        return


def _check_network(run: Run, which: str, ema: float | None) -> None:
    if which == "student" and run.trained == "teacher":
        raise Refused(
            f"which=student, but {run.workdir} holds a run of `train-teacher`, expected one of "
            "`distill`; choose the teacher, or another run."
        )
    if ema is not None and (which, ema) not in [
        ("student", d) for d in run.config.optim.ema_decays
    ]:
        raise Refused(
            f"ema={ema:g}, expected one of optim.ema_decays={tuple(run.config.optim.ema_decays)} "
            f"of the run in {run.workdir}, and its student; leave it away for the student itself."
        )


def _check_best(run: Run, ema: float | None, weights: str, checkpoint: int | None) -> None:
    others = {"ema": ema, "weights": weights or None, "checkpoint": checkpoint}
    for name, value in others.items():
        if value is not None:
            raise Refused(
                f"which=best with {name}={value}, expected one of them: the best weights are a "
                "file of the run; leave the other away."
            )
    if not (run.workdir / BEST).is_file():
        raise Refused(
            f"which=best of {run.workdir}, which has no {BEST}, expected a run that kept its best "
            "weights: one with `config.log.stop_when=fid:patience=N` keeps what is better than all "
            "before it, from then on; train with it, or choose another network."
        )


def _restore(run: Run, step: int | None, part: str = "") -> tuple[Params, int]:
    config, family, adapter = run.config, run.family, None
    if run.ema is not None:
        part = f"ema.{tuple(config.optim.ema_decays).index(run.ema)}"
    elif not part:
        part = "ema" if run.trained == "teacher" else "generator.params"
    if run.trained == "student":
        adapter = player_adapters(config, family)[part.startswith("critic")]
    shapes = part_shapes(adapter, family)
    if run.trained == "student":
        shapes = guided_part_shapes(shapes, config.distill, family)
    if part == "critic.params":
        shapes = critic_shapes(shapes, config.distill, family)
    folder, identity = run.workdir / CHECKPOINTS, run_identity(run.workdir)
    with Checkpoints(folder, read_only=True, run=identity) as checkpoints:
        params, extra, found = checkpoints.restore_part(part, shapes, step)
    if adapter is not None:
        params = whole_part(params, config, family, extra.get("teacher"))
    return params, found
