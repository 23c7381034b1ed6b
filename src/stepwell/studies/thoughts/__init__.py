"""The study `thoughts`: what does a continuous thought buy?"""
