"""What the families share of published formats: diffusers folders, schedulers, LoRA files."""
