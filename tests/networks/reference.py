"""The layers by their definitions, in NumPy and float64."""

import numpy as np


def conv(x, kernel, bias, stride, padding):
    x = np.pad(np.asarray(x, np.float64), [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijcd->bhwd", windows, np.asarray(kernel, np.float64)) + bias


def group_norm(x, scale, bias, groups, eps=1e-5):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * scale + bias


def silu(x):
    return x / (1 + np.exp(-x))


def attention(query, key, value):
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def downsample(x, taps):
    """Correlate each channel with the outer product of the taps, stride 2."""
    return np.concatenate(
        [
            conv(x[..., c : c + 1], _kernel(taps)[..., None, None], 0, 2, len(taps) // 2 - 1)
            for c in range(x.shape[-1])
        ],
        axis=-1,
    )


def upsample(x, taps):
    """Let every pixel add four times the kernel to the image twice as large."""
    b, height, width, channels = x.shape
    size, pad = len(taps), len(taps) // 2 - 1
    out = np.zeros((b, 2 * height + 2 * pad, 2 * width + 2 * pad, channels))
    for row, column in np.ndindex(height, width):
        patch = x[:, row, column][:, None, None, :] * 4 * _kernel(taps)[None, :, :, None]
        out[:, 2 * row : 2 * row + size, 2 * column : 2 * column + size] += patch
    return out[:, pad : pad + 2 * height, pad : pad + 2 * width]


def _kernel(taps):
    return np.outer(taps, taps) / np.sum(taps) ** 2
