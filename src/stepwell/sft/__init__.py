"""Supervised fine-tuning on conversations: read, render, lint, pack, train."""
