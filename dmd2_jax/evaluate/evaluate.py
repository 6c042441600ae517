"""Measure images against real ones: `dmd2 evaluate`.

    images (a run's networks, weights, a pipeline, a folder) \
                                                              features -> metrics -> table, JSON
    real images (the recipe's data, a folder, statistics)    /

Images go by in batches, sampled and judged on all devices, and are forgotten; several metrics
share one pass. By default the features are those of a small classifier that is trained on the real
images (see `metrics.features`), which compare models of one data set and nothing else.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dmd2_jax import metrics
from dmd2_jax.config import plugins
from dmd2_jax.config.load import apply_overrides, load_config
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.text import read_json
from dmd2_jax.data import Source
from dmd2_jax.evaluate.clip import ClipJudge, captions_of, open_clip
from dmd2_jax.evaluate.compared import FirstImages, draw_compared
from dmd2_jax.evaluate.measured import (
    FILES_BATCH,
    FileImages,
    open_measured,
    refuse_cut_prompts,
)
from dmd2_jax.evaluate.options import (
    APART,
    CLIP,
    HPS,
    PATCH,
    PICK,
    RATIO,
    EvaluateOptions,
    check_options,
)
from dmd2_jax.evaluate.spaces import RealSide, Space, is_statistics, open_spaces, real_side
from dmd2_jax.metrics.contract.figures import plain
from dmd2_jax.metrics.features.extractor import Collector
from dmd2_jax.pictures.checkpoint_curve import checkpoint_curve
from dmd2_jax.recipe.classes import check_same_names, read_record
from dmd2_jax.recipe.open import check
from dmd2_jax.run.folder import COMPARED, read_run, write_json
from dmd2_jax.run.metrics import Progress
from dmd2_jax.runtime.devices import device_record, say_devices
from dmd2_jax.runtime.distributed import say
from dmd2_jax.runtime.places import has_folder, path_of
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.runtime.usable import check_output
from dmd2_jax.sampling.conditions import Prompts
from dmd2_jax.sampling.images import Images, SampledImages
from dmd2_jax.sampling.runs import Run, read_run_folder

__all__ = ["CURVE", "EvaluateOptions", "evaluate", "figures_file", "judge"]

_LOG = logging.getLogger(__name__)

CURVE = "fid_checkpoints.png"
"""The picture of FID over checkpoints, beside the file of figures."""


def evaluate(options: EvaluateOptions, *, cache: str | Path | None = None) -> dict[str, Any]:
    """Measure what the flags name; write the figures and pictures.

    Args:
      options: the flags.
      cache: folder of trained classifiers; None: the folder `classifier` of the run, if it is one.

    Returns:
      What the file of figures holds: those of each set with its name in front (images_fid,
      student_fid, student_checkpoint_400_fid, ...), real_fid_floor and classifier_test_accuracy
      of a classifier, extractor, reference, seed, devices, clip, clip_prefix, pick, hps,
      hps_weights; own_figures says how those of the user's own metrics are shown.

    Raises:
      ValueError: if a flag or what it names is refused; before any image is made, as far as that
        can be known.
      FileNotFoundError: if there is nothing where a flag says.
    """
    options = dataclasses.replace(options, metrics=tuple(dict.fromkeys(options.metrics)))
    check_options(options)
    metrics.needs([name for name in options.metrics if name not in APART])
    _check_one_written(options)
    out = figures_file(options)
    if options.all_checkpoints and "fid" not in options.metrics:
        _LOG.warning(
            "%s will not be drawn: it is of FID, and %s is not.",
            out.with_name(CURVE), ",".join(options.metrics),
        )  # fmt: skip
    if options.workdir and not path_of(options.workdir).is_dir():
        read_run(options.workdir)  # which says what is missing
    if not has_folder(out.parent):
        raise Refused(f"`out={out}` lies in no folder, expected {out.parent}; create it.")
    run, config = _recipe(options)
    devices = jax.devices()
    if not 0 <= options.devices <= len(devices):
        raise Refused(
            f"`devices={options.devices}`, expected 1..{len(devices)}; leave it away for all."
        )
    mesh = make_mesh({"data": -1}, devices[: options.devices or len(devices)])
    say_devices(mesh.devices.flat)
    measured = open_measured(options, config, run, mesh)
    if measured:
        _check_outputs(options, out, run)
        refuse_cut_prompts(options, measured)
    judges = _judges(options, measured[0], mesh) if measured else []
    spaces, reference = open_spaces(
        options, config, mesh, _batch_size(options, config), cache=cache, check=_same_classes(run)
    )
    real = real_side(options, config, spaces, reference, measured)

    figures: dict[str, Any] = {}
    if reference is not None:
        if not options.reference:
            figures["real_fid_floor"] = reference.fid_floor
        figures["classifier_test_accuracy"] = reference.classifier.test_accuracy
    first = FirstImages()
    for images in measured:
        found = judge(images, spaces, real, judges, seen=first.add)
        figures |= {f"{images.key}_{key}": value for key, value in found.items()}
    figures |= {"seed": options.seed, "reference": real.name, "devices": device_record(mesh)}
    figures["extractor"] = ", ".join(space.extractor.name for space in spaces)
    if own := metrics.figures_of([name for name in options.metrics if plugins.is_dotted(name)]):
        figures["own_figures"] = plain(own)
    for key in ("clip", "pick", "hps", "hps_weights"):
        if value := getattr(options, key):
            figures[key] = Path(value).name
    if options.clip_prefix:
        figures["clip_prefix"] = options.clip_prefix.strip()
    if measured:
        _keep_others(out, figures)
        write_json(out, figures)
    if run is not None and not options.out:
        draw_compared(first, measured, figures, run.config, run.workdir)
    if options.all_checkpoints:
        _draw(options, measured, figures, out.with_name(CURVE))
    return figures


def figures_file(options: EvaluateOptions) -> Path:
    """Return the file that figures are written to."""
    return path_of(options.out or path_of(options.workdir) / "metrics.json")


def _check_outputs(options: EvaluateOptions, out: Path, run: Run | None) -> None:
    """Refuse names that cannot be written to, before anything is measured."""
    files = [out]
    if run is not None and not options.out:
        files.append(run.workdir / COMPARED)
    if options.all_checkpoints:
        files.append(out.with_name(CURVE))
    for file in files:
        check_output(file, is_file=True)


def _keep_others(out: Path, figures: Mapping[str, Any]) -> None:
    """Keep a file of figures that has those of sets which are not measured now, and say so."""
    try:
        former = read_json(out) if out.exists() else {}
    except (OSError, ValueError):  # nothing that could be kept
        return
    if any(key.endswith("_num_samples") and key not in figures for key in former):
        kept = out.with_name(f"{out.stem}_before{out.suffix}")
        write_json(kept, former)
        say(f"{out} had figures of other sets; they are in {kept} now.")


def _check_one_written(options: EvaluateOptions) -> None:
    """Refuse to write statistics that are there already, or those of two networks into one file."""
    if options.write_reference and is_statistics(options.reference):
        raise Refused(
            f"`write_reference=` with `reference={options.reference}`, which are statistics "
            "already, expected images; copy the file."
        )
    others = [name for name in options.metrics if name not in APART]
    if options.write_reference and PATCH in options.metrics and others:
        raise Refused(
            f"`write_reference=` with `metrics={','.join(options.metrics)}`, which are of two "
            f"feature networks, expected one, as a file holds the statistics of one; write a file "
            f"with `metrics={PATCH}` and another with the rest."
        )


def _recipe(options: EvaluateOptions) -> tuple[Run | None, ConfigDict | None]:
    """Return the run that the flags name, or none, and the recipe, of the run or of a file."""
    if options.workdir:
        run = read_run_folder(options.workdir, dtype=options.dtype or "")
        return run, run.config
    if options.config is None:
        return None, None
    config = load_config(options.config)
    apply_overrides(config, dict(options.overrides))
    check(config)
    return None, config


def _same_classes(run: Run | None) -> Callable[[Source], object] | None:
    """Return what refuses data whose classes have other numbers than the run's."""
    if run is None or not run.family.num_classes:
        return None
    place, record = str(run.workdir), read_record(run.workdir)
    remedy = "or measure by `features=inception`, which knows no classes"
    return lambda real: check_same_names(record, real, place, remedy)


def _judges(options: EvaluateOptions, images: Images, mesh: Mesh) -> list[ClipJudge]:
    """Open the judges of captions that the metrics name."""
    models = {CLIP: options.clip, PICK: options.pick, HPS: options.hps}
    asked = [name for name in options.metrics if name in models]
    if not asked:
        return []
    if isinstance(images, FileImages):
        texts = captions_of(options.images, images)
    else:
        # `check_options` lets nothing else pass
        assert isinstance(images, SampledImages) and isinstance(images.conditions, Prompts)
        texts = images.conditions.texts(len(images))
    more = {CLIP: {"prefix": options.clip_prefix}, HPS: {"weights": options.hps_weights}}
    return [open_clip(name, models[name], texts, mesh, **more.get(name, {})) for name in asked]


def _batch_size(options: EvaluateOptions, config: ConfigDict | None) -> int:
    """Return how many images arrive at a time, which is what the features' program is made for."""
    if options.images or options.pipeline or config is None:
        return FILES_BATCH
    size = options.batch_size or config.evaluate.batch_size
    return min(size, options.num or config.evaluate.num_samples)


def judge(
    images: Images,
    spaces: Sequence[Space],
    real: RealSide,
    judges: Sequence[ClipJudge] = (),
    *,
    seen: Callable[[Images, np.ndarray], object] | None = None,
) -> dict[str, Any]:
    """Let images go by once, and return what is found of them.

    Args:
      images: a set of them.
      spaces: the feature networks, with the metrics of each.
      real: what the images are compared with, in each of the spaces.
      judges: of captions, if the images have some.
      seen: called with the set and each of its batches.

    Returns:
      The figures of the metrics, and those of the making of the images.

    Raises:
      Refused: if an image is not finite, or a metric refuses the images; by their name.
    """
    collectors = [
        Collector(space.extractor, space.keep(images.conditional), images.describe)
        for space in spaces
    ]
    for one in judges:
        one.restart(images.describe)
    try:
        with Progress(total=len(images), description=images.key) as progress:
            done = 0
            for batch in images.batches():
                for collector in collectors:
                    collector.add(batch["image"], batch["label"])
                for one in judges:
                    one.add(batch["image"])
                if seen is not None:
                    seen(images, batch["image"])
                done += len(batch["image"])
                progress.update(done)
    except ValueError as error:
        if images.name in str(error):
            raise
        raise Refused(f"{images.name}: {error}") from error
    found: dict[str, Any] = {}
    for space, collector, side in zip(spaces, collectors, real.sets, strict=True):
        found |= space.figures(side, collector.result(), images.name)
    ratios = [found[f"{space.prefix}{RATIO}"] for space in spaces if RATIO in space.metrics]
    if len(ratios) > 1:
        found[f"{RATIO}_mean"] = float(np.mean(ratios))
    for one in judges:
        found |= one.figures()
    return found | images.figures()


def _draw(
    options: EvaluateOptions, measured: list[Images], figures: dict[str, Any], path: Path
) -> None:
    values = {
        images.step: figures[f"{images.key}_fid"]
        for images in measured
        if images.step is not None and f"{images.key}_fid" in figures
    }
    if values:
        name = Path(options.workdir).name
        title = f"{name}: {measured[0].key.partition('_checkpoint')[0]}, {figures['extractor']}"
        checkpoint_curve(values, path, title=title, floor=figures.get("real_fid_floor"))
