"""Measure a run, weights or a folder of images against real images.

Measure images against real ones: by default all that a run trained (and a student's teacher),
against the data of its recipe: FID and class accuracy in the features of a small classifier,
network calls and time an image.

example:
  dmd2 evaluate --workdir=runs/student
  dmd2 evaluate --workdir=runs/student --ema=0.97 --metrics=fid,kid,precision_recall
  dmd2 evaluate --workdir=runs/student --all_checkpoints
  dmd2 evaluate --config=configs/cifar10.py --weights=student.safetensors
  dmd2 evaluate --images=samples.zip --reference=imagenet-64x64.npz --features=inception \\
      --inception_weights=pt_inception-2015-12-05-6726825d.pth --resize=edm
  dmd2 evaluate --pipeline=student --prompts=prompts.txt --metrics=clip_score,diversity \\
      --clip=clip-vit-base-patch32 --features=inception --inception_weights=...

prints one table and writes metrics.json and compared.png (real images and those of each network)
into --workdir; with --out the figures alone, where it says; with
--all_checkpoints also fid_checkpoints.png beside it. Images go by in batches on all devices and
are never all in memory; several metrics share one pass. FID of few images is too large:
NAME_fid_bias in metrics.json says by about how much. A metric of your own is a dotted module:
--metrics=fid,my_lab.sharpness. docs/evaluation.md has the conventions.
"""

from typing import Any

from dmd2_jax.evaluate.options import EvaluateOptions as Options

__all__ = ["Options", "run"]


def run(options: Options) -> dict[str, Any]:
    """Measure, write the figures and print a table.

    Returns:
      The figures.

    Raises:
      ValueError: if a flag or what it names is refused.
      FileNotFoundError: if there is nothing where a flag says.
    """
    from dmd2_jax.evaluate.evaluate import CURVE, evaluate, figures_file
    from dmd2_jax.evaluate.table import metrics_table

    metrics = evaluate(options)
    file = figures_file(options)
    table = metrics_table(metrics, options.metrics)
    print(table)
    if "±" in table:
        print(
            "±: one standard deviation of the draw of the samples (docs/evaluation.md); another "
            "training of the same recipe differs by more."
        )
    print(f"figures: {file}")
    if options.all_checkpoints:
        print(f"curve: {file.with_name(CURVE)}")
    if options.write_reference:
        print(f"statistics of {metrics['reference']}: {options.write_reference}")
    return metrics
