"""The metrics once more, as their papers write them: loops over pairs, float64, no blocks."""

import numpy as np


def distance(a, b):
    return np.sqrt(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum())


def radius(x, i, k):
    """Distance from x[i] to its k-th nearest other vector."""
    return sorted(distance(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1]


def inside(x, radii, y):
    """[len(y), len(x)]: whether y_j is in the ball of x_i, with its border."""
    return np.array([[distance(a, b) <= r for a, r in zip(x, radii, strict=True)] for b in y])


def precision_recall(real, fake, k):
    real_radii, fake_radii = ([radius(x, i, k) for i in range(len(x))] for x in (real, fake))
    precision = inside(real, real_radii, fake).any(axis=1).mean()
    return {"precision": precision, "recall": inside(fake, fake_radii, real).any(axis=1).mean()}


def density_coverage(real, fake, k):
    table = inside(real, [radius(real, i, k) for i in range(len(real))], fake)
    return {"density": table.sum() / (k * len(fake)), "coverage": table.any(axis=0).mean()}


def kernel(a, b):
    return (float(np.dot(a.astype(np.float64), b.astype(np.float64))) / len(a) + 1) ** 3


def kid(x, y):
    """The unbiased estimate from all of both sets."""
    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(kernel(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def inception_score(logits):
    p = [np.exp(row) / np.exp(row).sum() for row in logits.astype(np.float64)]
    mean = sum(p) / len(p)
    return np.exp(sum((row * np.log(row / mean)).sum() for row in p) / len(p))


def diversity(features, labels):
    means = []
    for label in sorted(set(labels)):
        x = features[labels == label]
        pairs = [distance(x[i], x[j]) for i in range(len(x)) for j in range(i)]
        if pairs:
            means.append(np.mean(pairs))
    return np.mean(means)
