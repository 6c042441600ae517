"""What `benchmarks.suite` times: ours of each row and, where it is installed, a peer of equal work.

A row makes its contenders; each of them does a unit of work and returns the seconds it took. Of
networks' calls and of FID the results are compared first: what computes something else is no peer.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cycle, fid, loader
from benchmarks.reference_point import get_config
from dmd2_jax import metrics
from dmd2_jax.families.published.folder import read_component
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.metrics.features.inception import inception_extractor
from dmd2_jax.networks.inception import inception_params
from dmd2_jax.networks.inception_names import torchvision_tensors
from dmd2_jax.recipe.distillation import initial_state, open_distillation
from dmd2_jax.recipe.open import Recipe, build_family
from dmd2_jax.run.checkpoint import Checkpoints
from dmd2_jax.runtime.owner import owned
from dmd2_jax.runtime.sharding import make_mesh
from dmd2_jax.training.teacher import compile_step, init_teacher_state

__all__ = ["ROWS", "Contender", "Row", "Size"]

Contender = Callable[[], float]
"""Does its work once and returns the seconds."""

OURS = "ours"


class Size(NamedTuple):
    """How large the rows are.

    Attributes:
      model_channels: of the U-Net that is trained.
      resolution: of its images.
      batch: of every network.
      widths: of the published U-Net's and autoencoder's levels.
      images: that are read by the loader.
      features: vectors of FID, and their dimension.
      megabytes: of the state that is saved.
    """

    model_channels: int = 32
    resolution: int = 64
    batch: int = 4
    widths: tuple[int, ...] = (64, 128, 256)
    images: int = 2_000
    features: tuple[int, int] = (50_000, 2_048)
    megabytes: float = 200.0


class Row(NamedTuple):
    """A line of the table.

    Attributes:
      unit: what a contender does once.
      make: makes the contenders, ours first; what they write goes into the folder.
    """

    unit: str
    make: Callable[[Size, Path], Mapping[str, Contender]]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds of some work, the computing of its result included."""
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def _config(size: Size, shared_pass: bool = False) -> Any:
    config = get_config()
    config.model.model_channels, config.model.resolution = size.model_channels, size.resolution
    config.distill.batch_size = config.teacher.batch_size = size.batch
    config.distill.shared_pass = shared_pass
    return config


def _cycle(size: Size, folder: Path, shared_pass: bool = False) -> Mapping[str, Contender]:
    config = _config(size, shared_pass)
    family = build_family(config)
    job = open_distillation(config, family, make_mesh(config.mesh))
    teacher, batch = family.init(jax.random.key(0)), cycle.example_batch(config, family)
    state = initial_state(job.players, job.settings, family, teacher, jax.random.key(1))

    def ours() -> float:
        nonlocal state
        begun = time.perf_counter()
        state, _ = job.cycle(state, teacher, batch, jax.random.key(2))
        jax.block_until_ready(state)
        return time.perf_counter() - begun

    return {OURS: ours, **cycle.torch_contender(config, family, teacher)}


def _shared_cycle(size: Size, folder: Path) -> Mapping[str, Contender]:
    """Less work than the twin's, which has the official order alone."""
    found = _cycle(size, folder, shared_pass=True)
    return {name if name == OURS else f"{name}, official": it for name, it in found.items()}


def _teacher_step(size: Size, folder: Path) -> Mapping[str, Contender]:
    config = _config(size)
    family = build_family(config)
    recipe = Recipe(config, family, None, make_mesh(config.mesh))  # type: ignore[arg-type]
    step, state = compile_step(recipe), init_teacher_state(family.init(jax.random.key(0)))
    real = cycle.example_batch(config, family).real
    x_0, cond = jax.tree.map(lambda x: x[0], (real.x_0, real.cond))

    def ours() -> float:
        nonlocal state
        begun = time.perf_counter()
        state, _ = step(state, x_0, cond, jax.random.key(2))
        jax.block_until_ready(state)
        return time.perf_counter() - begun

    found: dict[str, Contender] = {OURS: ours}
    try:
        from benchmarks import torch_reference
    except ImportError:
        return found
    twin = torch_reference.build(config.to_dict(), seed=0)
    return found | {"PyTorch": lambda: torch_reference.run_denoising_step(twin)}


def _published(theirs: Any, folder: Path, arrays: list[np.ndarray], method: Any, call: Any) -> dict:
    """Return ours and diffusers' on the same weights and inputs, once they have agreed."""
    import torch

    theirs.eval().save_pretrained(folder)
    model, params = read_component(folder, classes=CLASSES)
    run = jax.jit(lambda params, *x: model.module.apply(params, *x, method=method))
    inputs = [jnp.asarray(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x) for x in arrays]
    tensors = [torch.from_numpy(x) for x in arrays]

    def call_theirs() -> np.ndarray:
        with torch.inference_mode():
            return call(*tensors).sample.numpy()

    got = run(params, *inputs)
    got = got[0] if isinstance(got, tuple) else got
    want = call_theirs().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, atol=2e-3 * np.abs(want).max())
    return {
        OURS: lambda: timed(lambda: run(params, *inputs)),
        "diffusers": lambda: timed(call_theirs),
    }


def _unet(size: Size, folder: Path) -> Mapping[str, Contender]:
    diffusers, random = _import("diffusers"), np.random.default_rng(0)
    theirs = diffusers.UNet2DConditionModel(
        sample_size=size.resolution // 2,
        block_out_channels=size.widths,
        down_block_types=("CrossAttnDownBlock2D",) * (len(size.widths) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(size.widths) - 1),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    sample = (size.batch, 4, size.resolution // 2, size.resolution // 2)
    arrays = [
        random.standard_normal(sample, np.float32),
        np.full((size.batch,), 500, np.int32),
        random.standard_normal((size.batch, 77, 64), np.float32),
    ]
    return _published(theirs, folder, arrays, None, theirs)


def _autoencoder(size: Size, folder: Path) -> Mapping[str, Contender]:
    diffusers, levels = _import("diffusers"), len(size.widths)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=size.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
    )
    side = size.resolution // 2 ** (levels - 1)
    latent = np.random.default_rng(0).standard_normal((size.batch, 4, side, side), np.float32)
    return _published(theirs, folder, [latent], "decode", theirs.decode)


def _inception(size: Size, folder: Path) -> Mapping[str, Contender]:
    """FID's network with random weights, the same in both: the published ones are a download."""
    import torch
    from pytorch_fid import inception as theirs

    nothing = mock.patch.object(theirs, "load_state_dict_from_url", return_value={})
    with nothing, mock.patch.object(torch.nn.Module, "load_state_dict"):
        network = theirs.fid_inception_v3().eval()
    with mock.patch.object(theirs, "fid_inception_v3", return_value=network):
        peer = theirs.InceptionV3([3]).eval()
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    params = inception_params(torchvision_tensors(tensors))
    extractor = inception_extractor(params, batch_size=size.batch)
    shape = (size.batch, size.resolution, size.resolution, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))

    def call_theirs() -> np.ndarray:
        with torch.inference_mode():
            return peer(inputs)[0].numpy()[:, :, 0, 0]

    want = call_theirs()
    np.testing.assert_allclose(extractor(images)[0], want, atol=1e-3 * np.abs(want).max())
    return {
        OURS: lambda: timed(lambda: extractor(images)),
        "pytorch-fid": lambda: timed(call_theirs),
    }


def _fid(size: Size, folder: Path) -> Mapping[str, Contender]:
    count, dimension = size.features
    real, _ = fid.collect(count, dimension, 0, False, 1)
    fake, _ = fid.collect(count, dimension, 1, False, 1)
    found: dict[str, Contender] = {
        OURS: lambda: timed(lambda: metrics.compute(["fid"], real, fake))
    }
    theirs = _import("pytorch_fid.fid_score", optional=True)
    if theirs is not None:
        sides = [(x.statistics.mean, x.statistics.covariance) for x in (real, fake)]
        (mu, sigma), (mu2, sigma2) = sides
        distance = theirs.calculate_frechet_distance
        ours_is = metrics.compute(["fid"], real, fake)["fid"]
        np.testing.assert_allclose(ours_is, distance(*sides[0], *sides[1]), rtol=1e-3, atol=1e-3)
        found["pytorch-fid"] = lambda: timed(lambda: distance(mu, sigma, mu2, sigma2))
    return found


def _loader(size: Size, folder: Path) -> Mapping[str, Contender]:
    from dmd2_jax import data

    loader.write_zip(folder / "images.zip", size.images)
    source = data.load(
        loader.source_config("image_folder", folder / "images.zip", 2), "train", loader.SIDE
    )
    batches, number = data.batches(source, batch_size=100, seed=0), size.images // 100

    def ours() -> float:
        return timed(lambda: [next(batches) for _ in range(number)][:0])

    if _import("torch", optional=True) is None:
        return {OURS: ours}
    its = _torch_reader(folder / "images.zip")
    # All of an epoch, so that its processes read nothing in our turn.
    return {OURS: ours, "torch's DataLoader": lambda: timed(lambda: [None for _ in its])}


def _torch_reader(file: Path) -> Any:
    """Return torch's DataLoader of a zip of PNG: shuffled batches, read by two processes."""
    import torch

    from benchmarks.torch_zip import ZipOfPng

    return torch.utils.data.DataLoader(
        ZipOfPng(str(file)),
        batch_size=100,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="spawn",  # a fork of this process, with JAX's threads, may hang
    )


def _save(size: Size, folder: Path) -> Mapping[str, Contender]:
    import orbax.checkpoint as orbax

    count = max(1, int(size.megabytes * 1e6 / 4 / 16))
    state = {f"{i}": jnp.full((count,), float(i)) for i in range(16)}
    turn = iter(range(1, 1_000_000))

    def ours() -> float:
        place = folder / f"ours{next(turn)}"
        with owned(place), Checkpoints(place / "checkpoints", run="r" * 16) as checkpoints:
            waited = timed(lambda: checkpoints.save(1, state, {}))
        shutil.rmtree(place)
        return waited

    def theirs() -> float:
        place = folder / f"orbax{next(turn)}"
        with orbax.AsyncCheckpointer(orbax.PyTreeCheckpointHandler()) as checkpointer:
            waited = timed(lambda: checkpointer.save(place, args=orbax.args.PyTreeSave(state)))
        shutil.rmtree(place)
        return waited

    return {OURS: ours, "Orbax alone": theirs}


def _compile(size: Size, folder: Path) -> Mapping[str, Contender]:
    config = _config(size)
    family = build_family(config)
    mesh = make_mesh(config.mesh)
    teacher, batch = family.init(jax.random.key(0)), cycle.example_batch(config, family)

    def compiled() -> float:
        jax.clear_caches()
        job = open_distillation(config, family, mesh)
        state = initial_state(job.players, job.settings, family, teacher, jax.random.key(1))
        return cycle.compile_seconds(job.cycle, state, teacher, batch, jax.random.key(2))[1]

    def cold() -> float:
        with tempfile.TemporaryDirectory() as empty:
            return _with_cache(empty, compiled)

    return {"ours": lambda: _with_cache(str(folder), compiled), "the same, cold": cold}


def _with_cache(folder: str, work: Contender) -> float:
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    for place in (folder, before):
        jax.config.update("jax_compilation_cache_dir", place)
        compilation_cache.reset_cache()
        if place == folder:
            seconds = work()
    return seconds


def _import(name: str, optional: bool = False) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        if optional:
            return None
        raise


ROWS: dict[str, Row] = {
    "cycle": Row("a cycle, official order", _cycle),
    "shared_cycle": Row("a cycle, shared pass", _shared_cycle),
    "teacher_step": Row("a step of a teacher's training", _teacher_step),
    "unet": Row("a call of a Stable Diffusion U-Net", _unet),
    "autoencoder": Row("latents decoded", _autoencoder),
    "inception": Row("features of FID's network", _inception),
    "fid": Row("FID of collected statistics", _fid),
    "loader": Row("images of a zip, decoded in batches", _loader),
    "save": Row("what the training waits for a save", _save),
    "compile": Row("the cycle compiled, from the cache", _compile),
}
