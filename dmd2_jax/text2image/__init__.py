"""The parts of a text-to-image pipeline around the network: text encoders, tokenizers, latents."""
