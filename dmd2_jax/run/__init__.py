"""A run on disk and its loop: checkpoints, folder, metrics, speed."""
