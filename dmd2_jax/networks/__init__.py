"""Flax Linen networks. They know tensors and parameters, nothing of noise schedules or losses."""
