"""Things that know nothing of diffusion: devices, processes, random keys, signals, digests."""
