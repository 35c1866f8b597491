"""CPU kernels of the selective scan, compiled by numba on first use and cached on disk.

One call serves one group and one block of channels: its states stay in the first-level cache, and the innermost loops run over
the channels of the block, which are vector lanes. Callers run blocks on threads (the kernels release the GIL); a block's
arithmetic does not depend on who runs it, so results do not depend on the number of threads.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload

LANES = 64
SPAN = 64  # tokens between stored states
F32, I32 = np.float32, np.int32
MATHS = {"contract", "reassoc", "nsz", "arcp"}  # may use fused multiply-add and reorder sums, must honour NaN and infinity


def _exp(x: Any) -> Any:
    """exp(x) for x <= 0."""
    return math.exp(x)


def _exp32(x: Any) -> Any:
    """The same in float32 to 1 ulp, as 2^k e^r with |r| <= ln(2) / 2: the library's exp is a call per number, this vectorises."""
    x = max(x, F32(-87.0))
    k = np.floor(x * F32(1.44269504) + F32(0.5))
    r = (x - k * F32(0.693359375)) + k * F32(2.12194440e-4)  # ln(2) in two parts
    p = F32(1.9875691500e-4) * r + F32(1.3981999507e-3)  # coefficients of Cephes' expf
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    return (p * r * r + r + F32(1.0)) * I32((I32(k) + I32(127)) << I32(23)).view(F32)  # 2^k by its exponent bits


@overload(_exp, inline="always")  # type: ignore[untyped-decorator]
def _compiled_exp(x: Any) -> Callable[[Any], Any]:
    return _exp32 if x == numba.float32 else _exp


def _forward(u: Any, delta: Any, A: Any, B: Any, C: Any, y: Any, stored: Any, first: int) -> None:
    """y (n, c) and the state before every SPAN-th token, stored (spans, s, c), for LANES channels from `first` on.

    u, delta: (n, c). A: (s, c). B, C: (n, s).
    """
    n, c = u.shape
    s = A.shape[0]
    width = min(LANES, c - first)
    h, a = np.zeros((s, LANES), u.dtype), np.zeros((s, LANES), u.dtype)
    d, x, out = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    a[:, :width] = A[:, first : first + width]
    for t in range(n):
        if t % SPAN == 0:
            stored[t // SPAN, :, first : first + width] = h[:, :width]
        for i in range(width):
            d[i] = delta[t, first + i]
            x[i] = d[i] * u[t, first + i]
            out[i] = 0
        for j in range(s):
            b, e = B[t, j], C[t, j]
            for i in range(LANES):
                h[j, i] = _exp(d[i] * a[j, i]) * h[j, i] + x[i] * b
                out[i] += h[j, i] * e
        for i in range(width):
            y[t, first + i] = out[i]


def _backward(
    u: Any, delta: Any, A: Any, B: Any, C: Any, dy: Any, stored: Any, du: Any, ddelta: Any, dA: Any, dB: Any, dC: Any, first: int
) -> None:
    """Gradients of the block: du, ddelta (n, c) and dA (s, c) in their places; dB, dC (n, s) hold this block's part alone.

    Runs over the spans backwards: states and decays of one span come again from its stored state, then the adjoint state
    g_t = exp(delta_{t+1} A) g_{t+1} + C_t dy_t runs back through it.
    """
    n, c = u.shape
    s = A.shape[0]
    width = min(LANES, c - first)
    g, a, da = np.zeros((s, LANES), u.dtype), np.zeros((s, LANES), u.dtype), np.zeros((s, LANES), u.dtype)
    h, decay = np.zeros((SPAN + 1, s, LANES), u.dtype), np.zeros((SPAN, s, LANES), u.dtype)
    d, v, x = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    w, dd, dx = np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype), np.zeros(LANES, u.dtype)
    a[:, :width] = A[:, first : first + width]
    for span in range((n - 1) // SPAN, -1, -1):
        begin, end = span * SPAN, min(n, (span + 1) * SPAN)
        h[0, :, :width] = stored[span, :, first : first + width]
        for t in range(begin, end):
            for i in range(width):
                d[i] = delta[t, first + i]
                x[i] = d[i] * u[t, first + i]
            for j in range(s):
                b = B[t, j]
                for i in range(LANES):
                    decay[t - begin, j, i] = _exp(d[i] * a[j, i])
                    h[t - begin + 1, j, i] = decay[t - begin, j, i] * h[t - begin, j, i] + x[i] * b
        for t in range(end - 1, begin - 1, -1):
            for i in range(width):
                d[i], v[i], w[i] = delta[t, first + i], u[t, first + i], dy[t, first + i]
                x[i] = d[i] * v[i]
                dd[i] = dx[i] = 0
            for j in range(s):
                b, e = B[t, j], C[t, j]
                db = dc = u.dtype.type(0)
                for i in range(LANES):
                    grad = g[j, i] + w[i] * e
                    carried = grad * decay[t - begin, j, i]
                    exponent = carried * h[t - begin, j, i]  # gradient of delta A
                    dd[i] += exponent * a[j, i]
                    da[j, i] += exponent * d[i]
                    dx[i] += grad * b
                    db += grad * x[i]
                    dc += w[i] * h[t - begin + 1, j, i]
                    g[j, i] = carried
                dB[t, j], dC[t, j] = db, dc
            for i in range(width):
                du[t, first + i] = dx[i] * d[i]
                ddelta[t, first + i] = dd[i] + dx[i] * v[i]
    dA[:, first : first + width] = da[:, :width]


forward = numba.njit(nogil=True, cache=True, fastmath=MATHS)(_forward)
backward = numba.njit(nogil=True, cache=True, fastmath=MATHS)(_backward)
