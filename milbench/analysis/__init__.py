"""Analysis: what methods cost and why they differ."""
