"""Write a student as a diffusers folder, a LoRA or one file, and share it on the Hub.

Write a text-to-image student so that diffusers loads it: a folder with its network, a
scheduler with its times, and everything else copied from its teacher's pipeline. Of a
student of classes, such as digits: its weights, and a README.md that says how to sample them.

examples:
  dmd2 export --workdir=runs/sdxl --out=student
  dmd2 export --workdir=runs/sdxl --out=student --dtype=float16
  dmd2 export --workdir=runs/lora --out=lora --lora
  dmd2 export --workdir=runs/lora --out=lora --lora=kohya
  dmd2 export --workdir=runs/sdxl --out=student --single_file --dtype=float16
  dmd2 export --weights=student.safetensors --pipeline=sdxl --times=999,749,499,249 \\
      --out=student
  dmd2 export --workdir=runs/sd35 --out=student --dtype=bfloat16
  dmd2 export --workdir=runs/guided --out=student_w3 --guidance=3
  dmd2 export --workdir=runs/sdxl --out=student --push=ada/sdxl-four-step --private

then, in Python (README.md in the folder has the lines):
  pipe = StableDiffusionXLPipeline.from_pretrained('student')
  pipe('a red fox', timesteps=[999, 749, 499, 249], guidance_scale=0)
of flows (SD 3, FLUX.1, FLUX.2-klein, Z-Image, Qwen-Image), whose times are in (0, 1]:
  pipe(prompt='a red fox', sigmas=[1.0, 0.9, 0.75, 0.5], guidance_scale=0)
  (of Qwen-Image true_cfg_scale=1.0)
or: dmd2 sample --pipeline=student --prompt='a red fox'

Only .json, .txt, .jinja and .safetensors are written, and a README.md: a model card with the
base and its licence, the run's settings, its figures if `dmd2 evaluate` measured them, and
which program opens the files with which sampler and steps. The folder appears whole or not at
all.
--push sends it to the Hugging Face Hub, as whom `hf auth login` or HF_TOKEN says; that, the
name and the header of the card are checked before any work.
See docs/text_to_image.md.
"""

import argparse
import dataclasses

from dmd2_jax.config.flags import flag
from dmd2_jax.config.refused import Refused

__all__ = ["GROUPS", "Options", "run"]

GROUPS = {
    "the Hub": "the folder goes to the Hugging Face Hub, and nothing else of the run (extra [hub])"
}

_WHAT, _AS, _CARD, _HUB = "what is exported", "how it is written", "README.md", "the Hub"
_LORA = ("peft", "kohya")
_SCHEDULERS = ("lcm", "ddim", "euler")  # the lists of families.published import jax


def _times(text: str) -> tuple[float, ...]:
    try:
        times = [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected numbers with commas; try 999,749,499,249, or of a flow "
            "1,0.75,0.5,0.25"
        ) from None
    return tuple(int(t) if t.is_integer() else t for t in times)


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 export` is asked for.

    Raises:
      Refused: if the flags contradict each other.
    """

    out: str = flag("the folder; new or empty", metavar="DIR")
    workdir: str = flag("the run of a distillation", default="", metavar="DIR", group=_WHAT)
    which: str | None = flag(
        "best: the student at its best by the run's log.stop_when; default: at its latest export",
        default=None,
        choices=("student", "best"),
        group=_WHAT,
    )
    ema: float | None = flag(
        "the student's average of this decay; default: the student itself",
        default=None,
        metavar="DECAY",
        group=_WHAT,
    )
    checkpoint: int | None = flag(
        "of the run; default: its latest export", default=None, metavar="STEP", group=_WHAT
    )
    weights: str = flag(
        "a student's weights, in place of --workdir; with --pipeline and --times",
        default="",
        metavar="FILE",
        group=_WHAT,
    )
    pipeline: str = flag(
        "the folder of the teacher's pipeline; default: the run's",
        default="",
        metavar="DIR",
        group=_WHAT,
    )
    variant: str = flag(
        "of the pipeline's weights, such as fp16; default: the run's, or the full or the only one",
        default="",
        metavar="NAME",
        group=_WHAT,
    )
    times: tuple[float, ...] = flag(
        "of the student's steps, with --weights",
        default=(),
        metavar="999,749",
        parse=_times,
        group=_WHAT,
    )
    guidance: float | None = flag(
        "of a student that takes the scale: write its weights at this one; default: the scale "
        "stays an input where diffusers' pipeline has one",
        default=None,
        metavar="W",
        group=_AS,
    )
    lora: str = flag(
        "the adapters alone: by peft's names for load_lora_weights, the default, or by kohya's, "
        "which ComfyUI and A1111 know too",
        default="",
        choices=_LORA,
        const=_LORA[0],
        group=_AS,
    )
    single_file: bool = flag(
        "one file of the original names, for ComfyUI, A1111 and Forge", default=False, group=_AS
    )
    scheduler: str = flag(
        "lcm: LCMScheduler, which takes the student's steps, of a flow FlowMatchLCMScheduler; "
        "ddim: DDIMScheduler, which takes those of a one-step student at 999; euler: of a flow, "
        "FlowMatchEulerDiscreteScheduler; default: lcm, of a flow euler, of a teacher its "
        "pipeline's",
        default="",
        choices=_SCHEDULERS,
        group=_AS,
    )
    dtype: str = flag(
        "of the network's file",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        group=_AS,
    )
    license: str = flag(
        "an identifier that the Hub knows, such as apache-2.0, openrail++ or other; default: the "
        "one that the base's README.md names, else other",
        default="",
        metavar="ID",
        group=_CARD,
    )
    base_model: str = flag(
        "the base's name on the Hub; default: known where the pipeline lies in the Hub's cache",
        default="",
        metavar="OWNER/NAME",
        group=_CARD,
    )
    push: str = flag(
        "a repository, made if it is not there; files of the same names are replaced",
        default="",
        metavar="OWNER/NAME",
        group=_HUB,
    )
    private: bool = flag(
        "make it private; refused where it is there and public", default=False, group=_HUB
    )
    dry_run: bool = flag(
        "check all but the numbers of the weights, say what would be written and pushed, and stop",
        default=False,
    )

    def __post_init__(self) -> None:
        if bool(self.workdir) == bool(self.weights):
            raise Refused(
                f"got --workdir={self.workdir!r} and --weights={self.weights!r}, expected one of "
                "them: the run of a distillation, or a file of its weights."
            )
        needed = {"--pipeline=DIR": self.pipeline, "--times=999,749,499,249": self.times}
        missing = [it for it, value in needed.items() if not value]
        if self.weights and missing:
            raise Refused(
                f"--weights={self.weights} without {' and '.join(missing)}, expected both: the "
                "teacher's pipeline, and the times of the student's steps; add "
                f"{'them' if len(missing) > 1 else 'it'}."
            )
        if self.workdir and self.times:
            raise Refused(
                "--times with --workdir, whose config says them, expected one; leave --times away."
            )
        if self.weights and (self.which, self.ema, self.checkpoint) != (None, None, None):
            raise Refused(
                "--which, --ema or --checkpoint with --weights, expected --workdir, from whose "
                "files they choose; leave them away."
            )
        if self.weights and self.guidance is not None:
            raise Refused(
                "--guidance with --weights, expected --workdir, whose config has the range of "
                "scales; leave --guidance away."
            )
        if self.which == "best" and (self.ema is not None or self.checkpoint is not None):
            raise Refused(
                "--which=best with --ema or --checkpoint, expected one: the best weights are a "
                "file of the run; leave the other away."
            )
        if self.lora and self.lora not in _LORA:
            raise Refused(f"--lora={self.lora}, expected one of {_LORA}; choose one.")
        if self.lora and self.single_file:
            raise Refused(
                "--lora with --single_file, which is of a whole student, expected one; leave one "
                "away."
            )
        if self.lora and self.checkpoint is not None:
            raise Refused(
                f"--lora with --checkpoint={self.checkpoint}, expected one: adapters alone are "
                "taken from the run's latest export; leave one away."
            )
        if self.lora and self.dtype != "float32":
            raise Refused(
                f"--lora with --dtype={self.dtype}, which is of a whole network, expected one: "
                "adapters are small and written as float32; leave --dtype away."
            )
        if self.private and not self.push:
            raise Refused(
                "--private without --push, expected the repository that is meant; add "
                "--push=owner/name."
            )
        if self.scheduler not in ("", *_SCHEDULERS):
            raise Refused(
                f"--scheduler={self.scheduler}, expected one of {_SCHEDULERS}; choose one."
            )


def run(options: Options) -> str:
    """Write the folder and say what it is and how to use it.

    Returns:
      What is printed.

    Raises:
      FileNotFoundError: if the pipeline is missing.
      ValueError: if the run, the weights or the pipeline are refused, or the folder is not empty.
      OSError: if the disk refuses.
    """
    from dmd2_jax.commands.export.student import export

    said = export(options)
    print(said)
    return said
