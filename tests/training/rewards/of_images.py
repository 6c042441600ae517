"""What is no reward: a number a pixel."""


def reward(x_0, cond):
    """Return the samples."""
    return x_0
