"""Analysis: why methods differ, seen in their attention, their scores and the slides."""
