"""What metrics are computed from: images, and networks that turn them into features."""
