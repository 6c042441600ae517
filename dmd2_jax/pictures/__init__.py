"""Grids, curves and figures, as PNG and GIF files."""
