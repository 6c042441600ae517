"""Open a web page that draws by a run or a pipeline, and shows a run that is training.

Open a web page on this machine: choose a class or write a prompt, and see what teacher and student
make of the same noise, with seconds and network calls; below it, the newest grid and the curves of
a run, which come anew while it is training.

example:
  dmd2 serve --workdir=runs/student
  dmd2 serve --pipeline=sdxl_student --port=8000
  dmd2 serve --workdir=runs/sdxl --pipeline=sdxl --dtype=bfloat16

A run's teacher is drawn too where its weights are at hand. Pictures are those of `dmd2 sample` with
the same class or prompt, seed and number. Only this machine is let in, unless --host says
otherwise; the page loads nothing from elsewhere. Ctrl-C ends it. docs/serve.md has the details.

Needs the extra: [serve].
"""

import dataclasses
from typing import TYPE_CHECKING

from dmd2_jax.config.flags import flag
from dmd2_jax.config.refused import Refused

if TYPE_CHECKING:
    from dmd2_jax.commands.serve.drawing import Drawer

__all__ = ["Options", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `dmd2 serve` is asked for.

    Raises:
      Refused: if the port is none.
    """

    workdir: str = flag("the run folder", default="", metavar="DIR")
    pipeline: str = flag(
        "a diffusers pipeline (SD 1.x, 2.x, SDXL); with --workdir, of all but the U-Net",
        default="",
        metavar="DIR",
    )
    variant: str = flag(
        "of the pipeline's weights, such as fp16; default: the full or the only one",
        default="",
        metavar="NAME",
    )
    dtype: str = flag(
        "type that the networks compute in; default: the run's, or float32",
        default="",
        choices=("float32", "bfloat16"),
    )
    host: str = flag(
        "address to listen at; 0.0.0.0 lets every machine in that reaches this one",
        default="127.0.0.1",
        metavar="ADDRESS",
    )
    port: int = flag("to listen at; 0: any that is free", default=7860)
    dry_run: bool = flag("check everything, read the weights, and stop", default=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise Refused(f"--port={self.port}, expected 0 to {2**16 - 1}; try 7860.")


def run(options: Options) -> None:
    """Serve the page until Ctrl-C.

    Raises:
      MissingPackageError: if gradio is not installed.
      ValueError: if there is no such run or pipeline, or the port is taken.
    """
    if not (options.workdir or options.pipeline):
        raise Refused(
            "got neither --workdir nor --pipeline, expected one of them: a run of dmd2, or a "
            "folder of a diffusers pipeline."
        )
    if options.workdir and options.variant:
        raise Refused(
            f"--variant={options.variant} given with --workdir, expected it with --pipeline alone: "
            "a run knows its own; leave it away."
        )
    from dmd2_jax.commands.serve.server import check_gradio, listening, quiet_gradio, serve

    check_gradio()
    with listening(options.host, options.port) as door:
        from dmd2_jax.commands.serve.drawing import Drawer
        from dmd2_jax.commands.serve.live import Live
        from dmd2_jax.commands.serve.subjects import open_pipeline_folder, open_run_folder

        if options.workdir:
            subject = open_run_folder(
                options.workdir, pipeline=options.pipeline, dtype=options.dtype
            )
        else:
            subject = open_pipeline_folder(
                options.pipeline, variant=options.variant, dtype=options.dtype
            )
        drawer, live = Drawer(subject), Live(options.workdir) if options.workdir else None
        if options.dry_run:
            print(_checked(drawer, door.address))
            return
        with quiet_gradio():
            from dmd2_jax.commands.serve.page import page
            from dmd2_jax.commands.serve.style import STYLE

            serve(page(drawer, live), STYLE, door)


def _checked(drawer: "Drawer", address: str) -> str:
    """Read the weights of all networks, and say what the page would have."""
    from dmd2_jax.commands.serve.subjects import Request

    lines = []
    for network in drawer.subject.offer.networks:
        try:
            way = drawer.read(network, Request())
        except Refused as error:
            lines.append(f"{network}: cannot be drawn: {error}")
        else:
            lines.append(f"{network}: {way.name}, network calls an image: {way.model.sampler.nfe}")
    return "\n".join([*lines, f"dry run: the page can be served at {address}."])
