"""Images of runs and pipelines."""
