"""The study `wire`: can a few latent vectors replace the text of a prompt?"""
