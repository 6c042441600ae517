"""`dmd2 cache`: images and captions to latents and embeddings."""
