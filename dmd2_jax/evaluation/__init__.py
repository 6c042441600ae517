"""Figures and pictures of how good samples are: features, Fréchet distance, image grids."""
