"""Pictures on request: each network's program compiled once a shape, its weights read once."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dmd2_jax.commands.serve.subjects import Request, Subject, Way, settings_of
from dmd2_jax.config.refused import Refused
from dmd2_jax.data.reading.dataset import to_uint8
from dmd2_jax.runtime.sharding import make_mesh, replicated
from dmd2_jax.sampling.images import SampledImages
from dmd2_jax.sampling.samplers import Sampler
from dmd2_jax.typing import Array, Params, PyTree, Shaped

__all__ = ["Drawer", "Drawn"]

_MOST_PROGRAMS = 24
"""Of a network: one for each number of pictures, of steps and guidance that was asked for."""

_QUICK = 2.0
"""Seconds in which a program can as well be called twice."""


class Drawn(NamedTuple):
    """What a network has drawn.

    Attributes:
      images: [n, h, w, c].
      captions: what each is of; "" where there is nothing to say.
      seconds: that the network took for all of them, without compilation, text and decoding.
      calls: of the network, an image.
      compiling: seconds of the compilation; 0: it was compiled.
      name: of the weights.
      note: what has to be said of the weights, or nothing.
    """

    images: Shaped[np.ndarray, "n h w c"]
    captions: list[str]
    seconds: float
    calls: int
    compiling: float
    name: str
    note: str


class Drawer:
    """Draws by a subject, one request at a time.

    Image i is that of `dmd2 sample` with the same class or prompt, seed and number of images, to
    the bit.
    """

    def __init__(self, subject: Subject) -> None:
        """Read and compile nothing yet."""
        self.subject = subject
        self._lock = threading.Lock()
        self._mesh = make_mesh({}, jax.devices()[:1])
        self._programs: dict[tuple, _Program] = {}
        self._weights: dict[str, tuple[Any, Params]] = {}

    def must_compile(self, network: str, request: Request) -> bool:
        """Return whether a request that is checked has to wait for a compilation first."""
        program = self._programs.get(self._key(network, request))
        return program is None or not program.knows(self._batch(request))

    def draw(self, network: str, request: Request) -> Drawn:
        """Draw.

        Args:
          network: "teacher" or "student".
          request: what is asked for.

        Raises:
          ValueError: if the request is refused, the network has no weights yet, they are damaged,
            or something that is not a number comes out.
        """
        self.subject.check(request)
        with self._lock:
            way = self.subject.way(network, request)
            program = self._program(network, request, way.model.sampler)
            model = way.model._replace(
                sampler=way.model.sampler._replace(run=program),
                load=lambda: self._loaded(network, way),
            )
            program.seconds = program.compiling = 0.0
            images = SampledImages(
                network,
                way.name,
                model,
                self.subject.conditions(network, request, model),
                num=request.num,
                batch_size=self.subject.batch_size,
                seed=request.seed,
                mesh=self._mesh,
                timed=False,
            )
            made = np.concatenate([batch["image"] for batch in images.batches()])
            if not np.isfinite(made).all():
                raise Refused(
                    f"{way.name} draws what is not finite, expected numbers; the weights are "
                    "damaged or diverged: choose others."
                )
            return Drawn(
                np.asarray(to_uint8(made)),
                self.subject.captions(request),
                program.seconds,
                model.sampler.nfe,
                program.compiling,
                way.name,
                way.note,
            )

    def read(self, network: str, request: Request) -> Way:
        """Read all that a request needs, as a check, and keep nothing.

        Raises:
          ValueError: as `draw`.
        """
        self.subject.check(request)
        way = self.subject.way(network, request)
        way.model.load()
        if (decoder := way.model.decoder) is not None:
            _ = decoder.vae_params
        if (pipeline := way.model.pipeline) is not None:
            _ = pipeline.encoders
        return way

    def _key(self, network: str, request: Request) -> tuple:
        """Return what decides a program but for its shapes; a student's averages share one."""
        settings = settings_of(network, request, self.subject.offer)
        told = network == "student"  # the scale, if any, which is an argument of the program
        return network, settings.steps, None if told else settings.guidance

    def _batch(self, request: Request) -> int:
        return min(self.subject.batch_size, request.num)

    def _program(self, network: str, request: Request, sampler: Sampler) -> "_Program":
        key = self._key(network, request)
        if key not in self._programs:
            if len(self._programs) >= _MOST_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))  # the oldest
            self._programs[key] = _Program(sampler.run)
        return self._programs[key]

    def _loaded(self, network: str, way: Way) -> Params:
        """Return a network's weights, on the device; read again where their file has changed."""
        there = way.file.stat()
        stamp = (way.file, there.st_mtime_ns, there.st_size)
        if network not in self._weights or self._weights[network][0] != stamp:
            self._weights.pop(network, None)  # first: there may be no room for both
            self._weights[network] = stamp, jax.device_put(way.model.load(), replicated(self._mesh))
        return self._weights[network][1]


class _Program:
    """A sampler's `run` that is compiled once a batch size, and tells its own time.

    Attributes:
      seconds: that it has run, compilation apart.
      compiling: seconds of its compilations.
    """

    def __init__(self, run: Callable[[Params, Array, PyTree], Array]) -> None:
        self._run: Any = run
        self._compiled: dict[tuple, Any] = {}
        self.seconds = self.compiling = 0.0

    def knows(self, batch: int) -> bool:
        return any(key[0] == batch for key in self._compiled)

    def __call__(self, params: Params, noise: Array, cond: PyTree) -> Array:
        start = time.perf_counter()
        key = (noise.shape[1], *((it.shape, it.dtype) for it in jax.tree.leaves((params, cond))))
        is_new = key not in self._compiled
        if is_new:
            self._compiled[key] = self._run.lower(params, noise, cond).compile()
            self.compiling += time.perf_counter() - start
        run = self._compiled[key]
        made, seconds = _timed(run, params, noise, cond)
        if is_new and seconds < _QUICK:  # most of it may be what a program's first call costs
            made, seconds = _timed(run, params, noise, cond)
        self.seconds += seconds
        return made


def _timed(run: Any, *arguments: Any) -> tuple[Array, float]:
    start = time.perf_counter()
    return jax.block_until_ready(run(*arguments)), time.perf_counter() - start
