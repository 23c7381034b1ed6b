"""The study `squeeze`: can a prompt's own embeddings be compressed, token by token, and restored?"""
