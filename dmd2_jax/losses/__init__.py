"""One pure function a file: (arrays, keyword-only hyperparameters) -> (scalar loss, metrics)."""
