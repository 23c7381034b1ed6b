"""The encoders, one a module, and what they share; `stepwell.latents.encoder` builds any of them."""
