"""Layers that two or more aggregators share."""

from milbench.nn.attention_score import AttentionScore

__all__ = ["AttentionScore"]
