"""Things that know nothing of diffusion: randomness, checkpoints, metrics, devices, signals."""
