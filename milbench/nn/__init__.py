"""Layers that two or more aggregators share."""

from milbench.nn.attention_score import AttentionScore
from milbench.nn.head_pooling import HeadPooling, QueryPooling
from milbench.nn.precision import wide

__all__ = ["AttentionScore", "HeadPooling", "QueryPooling", "wide"]
