"""Write VAE latents and text embeddings once, for training on them.

Put images with captions, or prompts alone, through the autoencoder and the text
encoders of a diffusers pipeline, once, and write what comes out as array_record shards.
Training on them (--config.data.name=latents) touches neither network.

examples:
  dmd2 cache --pipeline=sdxl --images=photos/ --out=cache --dry_run
  dmd2 cache --pipeline=sdxl --images=photos/ --out=cache --text_dtype=bfloat16
  dmd2 cache --pipeline=sd15 --prompts=prompts.txt --out=prompts_cache
  dmd2 cache --vae=sd-vae-ft-ema --images=imagenet/ --resolution=256 --out=latents_256

--images is a folder or zip of images with metadata.jsonl
  {"file_name": "1.png", "text": "a red fox"}
(or .csv, .parquet), or a .txt or .caption beside each; their middle is cut out. --prompts
is a .txt (one a line), .jsonl or .parquet. With --vae and no --pipeline, --images has a
folder for each class (or EDM's dataset.json), and latents are written with their classes.

writes into --out: shard-*.array_record, null.safetensors (the embedding of no prompt) or
labels.safetensors (the classes), and in the end manifest.json, which seals the
configuration and the digest of each file. A killed command loses the shard that it was
writing; the same command again goes on. `dmd2 data` with config.data.name=latents
compares all digests. With --pipeline it needs the extra [text2image]. See docs/data.md.
"""

from dmd2_jax.commands.cache.options import Options

__all__ = ["Options", "run"]

RESUMES = True


def run(options: Options) -> None:
    """Write latents and embeddings, or go on where a killed command stopped."""
    if not options.pipeline:
        from dmd2_jax.commands.cache.classes import make_class_cache

        print(make_class_cache(options))
        return
    from dmd2_jax.commands.cache.write import make_cache

    print(make_cache(options))
