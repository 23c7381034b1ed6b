"""Merging an adapter into its base: streamed from file to file, refused or proved."""
