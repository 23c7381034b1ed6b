"""Latents: what stands where tokens would."""
