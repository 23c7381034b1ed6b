"""Questions about a text, split for training: what the studies `wire` and `squeeze` share."""
