"""Weights that the golden folders do not store but derive; see tests/golden/README.md."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tensors = dict[str, np.ndarray]


def reversed_(tensors: Tensors) -> Tensors:
    """Reverse every tensor along all its axes."""
    return {name: np.flip(w).copy() for name, w in tensors.items()}


def rolled(tensors: Tensors) -> Tensors:
    """Roll every tensor's C-order elements by half its size."""
    return {
        name: np.roll(w.reshape(-1), w.size // 2).reshape(w.shape) for name, w in tensors.items()
    }


def recipe(shapes: dict[str, tuple[int, ...]], seed: int, gain: float) -> Tensors:
    """Draw tensors by the recipe of the golden README, in sorted order of their names."""
    random, tensors = np.random.RandomState(seed), {}
    for name in sorted(shapes):
        if name.endswith("num_batches_tracked"):
            continue
        shape = tuple(shapes[name])
        z = random.standard_normal(size=shape)
        if name.endswith("running_var"):
            w = 1 + 0.2 * np.abs(z)
        elif name.endswith("running_mean"):
            w = 0.1 * z
        elif len(shape) >= 2:
            w = z * np.sqrt(gain / np.prod(shape[1:]))
        elif name.endswith("weight"):
            w = 1 + 0.1 * z
        else:
            w = 0.1 * z
        tensors[name] = w.astype(np.float32)
    return tensors


def check_sums(tensors: Tensors, recorded: dict, prefix: str, *, rtol: float = 1e-9) -> None:
    """Hold a derived state dict against the recorded names, sums and sums of squares."""
    names = [str(n) for n in recorded[f"{prefix}_check_names"]]
    assert sorted(tensors) == names
    wide = [tensors[n].astype(np.float64) for n in names]
    np.testing.assert_allclose([w.sum() for w in wide], recorded[f"{prefix}_check_sum"], rtol=rtol)
    np.testing.assert_allclose(
        [(w * w).sum() for w in wide], recorded[f"{prefix}_check_sumsq"], rtol=rtol
    )


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """Return |got - expected| / |expected| in L2, float64."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def apart_in_time(family: Any, params: Any, x_t: np.ndarray, cond: Any) -> float:
    """Return how far a flow's predictions are apart at two times that bfloat16 makes one."""
    flows = []
    for t in (0.75, 0.751):
        x_0 = family.denoiser.x0(params, x_t, jnp.full((len(x_t),), t), cond)
        flows.append((x_t - np.asarray(x_0)) / t)
    return relative(*flows)


def recorded_or_none(recorded: dict, name: str) -> jax.Array | None:
    """Return a recorded array; None if there is none: a network without classes has no labels."""
    return jnp.asarray(recorded[name]) if name in recorded else None


def nhwc(x: np.ndarray) -> jax.Array:
    """Move channels last; a JAX array, as our functions take."""
    return jnp.moveaxis(jnp.asarray(x), -3, -1)


def nchw(x: np.ndarray) -> np.ndarray:
    """Move channels first."""
    return np.moveaxis(np.asarray(x), -1, -3)
