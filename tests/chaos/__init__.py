"""Damage of every kind, at random from a seed: `make chaos`. docs/durability.md has its table."""
