"""Flax Linen networks, which know tensors and parameters, nothing of noise schedules or losses."""
