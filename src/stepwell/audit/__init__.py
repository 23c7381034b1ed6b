"""Audits: whether data are what they claim to be, before anything is trained on them."""
