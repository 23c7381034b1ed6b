"""The study `imprint`: what do vectors fitted to one example hold?"""
