"""Rewards that `dmd2 distill` is given by name."""
