"""Tensor operations for long bags: exact, linear in memory, fast on a CPU, with GPU backends; each beside its naive twin."""

from milbench.ops.causal_conv import causal_conv1d, causal_conv1d_naive
from milbench.ops.dilated_attention import dilated_attention, dilated_attention_naive
from milbench.ops.full_attention import full_attention, full_attention_naive
from milbench.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_naive
from milbench.ops.local_attention import local_attention_2d, local_attention_2d_naive
from milbench.ops.pooling import pool_2x2, pool_2x2_naive
from milbench.ops.positions import alibi_slopes, rope_2d, rope_2d_naive
from milbench.ops.retention import retention, retention_naive, retention_recurrent
from milbench.ops.scan_orders import cross_scan, scan_order
from milbench.ops.selective_scan import selective_scan, selective_scan_naive
from milbench.ops.window import Window

# Operations that have a choice of backends, and the definition that each must equal.
OPERATIONS = {
    "full_attention": full_attention_naive,
    "local_attention_2d": local_attention_2d_naive,
    "retention": retention_naive,
    "gated_linear_attention": gated_linear_attention_naive,
    "selective_scan": selective_scan_naive,
}

__all__ = [
    "OPERATIONS", "Window", "alibi_slopes", "causal_conv1d", "causal_conv1d_naive", "cross_scan", "dilated_attention",
    "dilated_attention_naive", "full_attention", "full_attention_naive", "gated_linear_attention", "gated_linear_attention_naive",
    "local_attention_2d", "local_attention_2d_naive", "pool_2x2", "pool_2x2_naive", "retention", "retention_naive",
    "retention_recurrent", "rope_2d", "rope_2d_naive", "scan_order", "selective_scan", "selective_scan_naive",
]  # fmt: skip
