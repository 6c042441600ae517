"""Measuring: runs, weights and images to tables of metrics."""
