"""Adapting a model: LoRA, what stays frozen and how that is proved, and trained parts saved as one artifact."""
