# mypy: disable-error-code="import-untyped, no-untyped-def, untyped-decorator, call-arg, misc"
"""CPU kernels of windowed attention, compiled by numba on first use.

Queries come in compact tiles, one per vector lane; their keys are one contiguous slice per row of the grid, cut where the circle
ends. Scores are kept as (keys, lanes), so that every product is C += A B of one register-blocked kernel and the softmax runs
down the lanes. A tile's working set stays in the second-level cache; nothing of size n x window exists.

numba renews a kernel's cache on disk when the kernel's file changes, so everything that a kernel calls is in this file.
"""

import math
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

_AVX512 = binding.get_host_cpu_features().get("avx512f", False)
_BYTES = 64 if _AVX512 else 32  # of one vector register
_ROWS = 8 if _AVX512 else 4  # of C held in registers, two vectors each
PAD = 4  # slices of keys are padded to a multiple of this many rows
LANES = 32  # queries of a tile
BAND = 4  # rows of the grid a tile spans
WIDEST = 16  # columns a tile may span
LARGEST_RADIUS = 16_000  # squared distances of a window fit 32 bits


def _micro(rows: int, vectors: int):  # long, because each instruction that it emits uses values of those before
    """An intrinsic for C[rows, vectors * lanes] += A[rows, k] B[k, vectors * lanes], k >= 1, with C in registers.

    Its arguments are (C, offset, ldc, A, offset, row stride, k stride, B, offset, ldb, k): flat arrays, everything in elements.
    LLVM gets whole vectors, because its loop vectoriser would keep C in memory.
    """

    @intrinsic
    def micro(_, c, c_at, ldc, a, a_at, a_row, a_k, b, b_at, ldb, k):
        def codegen(context, builder, signature, args):
            i64, i32 = ir.IntType(64), ir.IntType(32)
            scalar, size = (ir.FloatType(), 4) if c.dtype == types.float32 else (ir.DoubleType(), 8)
            lanes = _BYTES // size
            vector, undefined = ir.VectorType(scalar, lanes), ir.Constant(ir.VectorType(scalar, lanes), ir.Undefined)
            c_data, a_data, b_data = (
                builder.gep(context.make_array(kind)(context, builder, args[i]).data, [args[i + 1]])
                for i, kind in ((0, c), (3, a), (7, b))
            )
            _, _, ldc, _, _, a_row, a_k, _, _, ldb, k = args

            def at(base, offset, v):
                pointer = builder.gep(base, [builder.add(offset, i64(v * lanes))])
                return builder.bitcast(pointer, vector.as_pointer())

            cells = [(m, v) for m in range(rows) for v in range(vectors)]
            c_at = {(m, v): at(c_data, builder.mul(ldc, i64(m)), v) for m, v in cells}
            a_rows = [builder.mul(a_row, i64(m)) for m in range(rows)]
            before = {cell: builder.load(p, align=size) for cell, p in c_at.items()}
            entry, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("store")
            builder.branch(loop)
            builder.position_at_end(loop)
            step = builder.phi(i64)
            held = {cell: builder.phi(vector) for cell in cells}
            b_row = [builder.load(at(b_data, builder.mul(step, ldb), v), align=size) for v in range(vectors)]
            updated = {}
            for m in range(rows):
                factor = builder.load(builder.gep(a_data, [builder.add(a_rows[m], builder.mul(step, a_k))]))
                factor = builder.insert_element(undefined, factor, i32(0))
                factor = builder.shuffle_vector(factor, undefined, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))
                for v in range(vectors):
                    product = builder.fmul(factor, b_row[v], flags=("contract",))
                    updated[m, v] = builder.fadd(product, held[m, v], flags=("contract",))
            following = builder.add(step, i64(1))
            step.add_incoming(i64(0), entry)
            step.add_incoming(following, loop)
            for cell in cells:
                held[cell].add_incoming(before[cell], entry)
                held[cell].add_incoming(updated[cell], loop)
            builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
            builder.position_at_end(after)
            for cell in cells:
                builder.store(updated[cell], c_at[cell], align=size)
            return context.get_dummy_value()

        i = types.int64
        return types.void(c, i, i, a, i, i, i, b, i, i, i), codegen

    return micro


_tall_wide, _tall, _low_wide, _low = _micro(_ROWS, 2), _micro(_ROWS, 1), _micro(PAD, 2), _micro(PAD, 1)


@njit(nogil=True, cache=True)
def _add_product(m, n, k, c, c_at, ldc, a, a_at, a_row, a_k, b, b_at, ldb):
    """C[m, n] += A[m, k] B[k, n]; m a multiple of PAD, n of one vector."""
    lanes = _BYTES // c.itemsize
    for x in range(0, n, 2 * lanes):
        wide = x + 2 * lanes <= n
        y = 0
        while y < m:
            corner, left, top = c_at + y * ldc + x, a_at + y * a_row, b_at + x
            if m - y >= _ROWS:
                if wide:
                    _tall_wide(c, corner, ldc, a, left, a_row, a_k, b, top, ldb, k)
                else:
                    _tall(c, corner, ldc, a, left, a_row, a_k, b, top, ldb, k)
                y += _ROWS
            else:
                if wide:
                    _low_wide(c, corner, ldc, a, left, a_row, a_k, b, top, ldb, k)
                else:
                    _low(c, corner, ldc, a, left, a_row, a_k, b, top, ldb, k)
                y += PAD


@intrinsic
def _power_of_two(_, exponent):
    """2^exponent of a whole number, by its bits."""
    bias, mantissa = (127, 23) if exponent == types.float32 else (1023, 52)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(exponent.bitwidth)
        bits = builder.shl(builder.add(builder.fptosi(args[0], integer), integer(bias)), integer(mantissa))
        return builder.bitcast(bits, args[0].type)

    return exponent(exponent), codegen


_TAYLOR = tuple(1 / math.factorial(k) for k in range(14))


@njit(nogil=True, cache=True, inline="always", fastmath={"contract"})
def _exp(x, real):
    """exp(x) for x <= 0 to rounding, as a polynomial that runs in vector lanes; `real` is the dtype."""
    x = x if x > real(-87) else real(-87)
    whole = np.floor(x * real(1.4426950408889634) + real(0.5))
    part = (x - whole * real(0.693145751953125)) - whole * real(1.4286068203094172e-06)  # ln 2 in two pieces
    total = real(_TAYLOR[13])
    for k in range(12, -1, -1):
        total = total * part + real(_TAYLOR[k])
    return total * _power_of_two(whole)


@njit(nogil=True, cache=True, inline="always")
def _mix(h):
    """A bijective 32-bit hash; every input bit flips every output bit half of the time."""
    h = np.uint32(h)
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
    h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@njit(nogil=True, cache=True)
def _cut_tiles(x, y):
    """Where each tile of queries starts, for cells sorted by (y // BAND, x), and the end."""
    starts = np.empty(len(x) + 1, np.int64)
    count = 0
    for i in range(len(x)):
        first = starts[count - 1]
        if i == 0 or i - first == LANES or y[i] // BAND != y[first] // BAND or x[i] - x[first] >= WIDEST:
            starts[count] = i
            count += 1
    starts[count] = len(x)
    return starts[: count + 1].copy()


class Plan(NamedTuple):
    """Where everything is, for cells sorted by (y, x)."""

    order: np.ndarray  # (n,) place in the bag of each sorted token
    x: np.ndarray  # (n,) int32
    y: np.ndarray  # (n,) int32
    label: np.ndarray  # (n,) int32, tokens attend their own label only
    row_y: np.ndarray  # (rows,) the occupied rows
    row_start: np.ndarray  # (rows + 1,) their first tokens
    half: np.ndarray  # (radius + 1,) how far the circle reaches sideways so many rows away
    squared: int  # the largest squared distance inside the circle
    member: np.ndarray  # (n,) sorted tokens, tile after tile
    tile_start: np.ndarray  # (tiles + 1,)


def make_plan(x, y, label, squared):
    """The plan of n cells (n,) whose windows hold squared distances up to `squared`."""
    order = np.lexsort((x, y))
    x, y, label = (a[order].astype(np.int32) for a in (x, y, label))
    member = np.lexsort((y, x, y // BAND))
    row_y, row_start = np.unique(y, return_index=True)
    radius = math.isqrt(squared)
    half = np.array([math.isqrt(squared - dy * dy) for dy in range(radius + 1)])
    starts = _cut_tiles(x[member], y[member])
    return Plan(order, x, y, label, row_y, np.append(row_start, len(x)), half, squared, member, starts)


def padded_width(d, itemsize):
    """Channels after padding to whole vectors."""
    vector = _BYTES // itemsize
    return -(-d // vector) * vector


def key_range(tiles, plan):
    """Sorted keys that the tiles from tiles[0] to tiles[1] attend: (first, end)."""
    y = plan.y[plan.member[plan.tile_start[tiles[0]] : plan.tile_start[tiles[1]]]]
    radius = len(plan.half) - 1
    return tuple(np.searchsorted(plan.y, (y.min() - radius, y.max() + radius + 1)))


@njit(nogil=True, cache=True)
def _rounded(size):
    return -(-size // PAD) * PAD


@njit(nogil=True, cache=True)
def _key_slices(queries, plan, slices):
    """The contiguous keys of a tile in each row: slices[s] = (first, end, place among the tile's keys).

    Returns how many slices, how many keys with their padding.
    """
    x, y, half = plan.x, plan.y, plan.half
    radius = len(half) - 1
    low = high = y[queries[0]]
    for i in queries:
        low, high = min(low, y[i]), max(high, y[i])
    count = place = 0
    for r in range(np.searchsorted(plan.row_y, low - radius), len(plan.row_y)):
        if plan.row_y[r] > high + radius:
            break
        left, right = 2**62, -(2**62)
        for i in queries:
            dy = abs(plan.row_y[r] - y[i])
            if dy <= radius:
                left, right = min(left, x[i] - half[dy]), max(right, x[i] + half[dy])
        start = plan.row_start[r]
        columns = x[start : plan.row_start[r + 1]]
        first, end = start + np.searchsorted(columns, left), start + np.searchsorted(columns, right, side="right")
        if first < end:
            slices[count] = first, end, place
            count += 1
            place += _rounded(end - first)
    return count, place


@njit(nogil=True, cache=True)
def _distances(queries, slices, plan, out):
    """out[key, lane]: distance of the cells where the lane attends the key, -1 elsewhere."""
    qx, qy, label = np.zeros(LANES, np.int32), np.zeros(LANES, np.int32), np.full(LANES, -1, np.int32)
    real, squared = out.dtype.type, np.int32(plan.squared)
    for lane, i in enumerate(queries):
        qx[lane], qy[lane], label[lane] = plan.x[i], plan.y[i], plan.label[i]
    for first, end, place in slices:
        for j in range(first, end):
            at = (place + j - first) * LANES
            x, y, region = plan.x[j], plan.y[j], plan.label[j]
            for lane in range(LANES):
                dx, dy = np.int32(qx[lane] - x), np.int32(qy[lane] - y)
                d2 = np.int32(np.int32(dx * dx) + np.int32(dy * dy))
                out[at + lane] = math.sqrt(real(d2)) if (d2 <= squared) & (label[lane] == region) else real(-1)
        out[(place + end - first) * LANES : (place + _rounded(end - first)) * LANES] = -1


@njit(nogil=True, cache=True)
def _pack(x, head, queries, order, columns, rows):
    """The tile's vectors, as (channels, lanes) and as (lanes, channels of the padded width)."""
    width = len(rows) // LANES
    for lane, i in enumerate(queries):
        vector = x[head, order[i]]
        for c in range(len(vector)):
            columns[c * LANES + lane] = vector[c]
            rows[lane * width + c] = vector[c]


@njit(nogil=True, cache=True)
def _key_products(slices, lanes, columns, keys, head, out):
    """out[key, lane] = keys . columns."""
    _, rows, width = keys.shape
    flat = keys.reshape(-1)
    for first, end, place in slices:
        out[place * LANES : (place + _rounded(end - first)) * LANES] = 0
        at = (head * rows + first) * width
        _add_product(_rounded(end - first), lanes, width, out, place * LANES, LANES, flat, at, width, 1, columns, 0, LANES)


@njit(nogil=True, cache=True)
def _weighted_sum(slices, count, weights, keys, head, out):
    """out[lane] = sum over keys of weights[key, lane] keys[key]."""
    _, rows, width = keys.shape
    flat = keys.reshape(-1)
    out[:] = 0
    for first, end, place in slices:
        at = (head * rows + first) * width
        _add_product(_rounded(count), width, end - first, out, 0, width, weights, place * LANES, 1, LANES, flat, at, width)


@njit(nogil=True, cache=True)
def _add_outer(slices, count, weights, vectors, head, origin, out):
    """out[key - origin] += sum over lanes of weights[key, lane] vectors[lane]."""
    _, rows, width = out.shape
    flat = out.reshape(-1)
    for first, end, place in slices:
        at = (head * rows + first - origin) * width
        _add_product(_rounded(end - first), width, count, flat, at, width, weights, place * LANES, LANES, 1, vectors, 0, width)


@njit(nogil=True, cache=True)
def _drop(x, queries, slices, order, head, seed, dropout):
    """Zero each (key, lane) with probability `dropout` and scale the rest; the choice depends on the pair and the seed only."""
    threshold = np.uint32(dropout * 4294967295.0)
    scale = x.dtype.type(1 / (1 - dropout))
    salt = np.zeros(LANES, np.uint32)
    for lane, i in enumerate(queries):
        salt[lane] = _mix(_mix(_mix(seed) + head) + order[i])
    for first, end, place in slices:
        for j in range(first, end):
            at, token = (place + j - first) * LANES, np.uint32(order[j]) * np.uint32(0x9E3779B1)
            for lane in range(LANES):
                x[at + lane] = x[at + lane] * scale if _mix(salt[lane] + token) >= threshold else x.dtype.type(0)


@njit(nogil=True, cache=True, fastmath={"contract"})
def _softmax(s, distance, keys, scale, slope, top, mass):
    """Turn the products s[key, lane] into exp(score - top) and leave each lane's largest score and its sum of the rest."""
    real = s.dtype.type
    top[:], mass[:] = -1e30, 0
    for at in range(0, keys * LANES, LANES):
        score, far = s[at : at + LANES], distance[at : at + LANES]  # views, or LLVM does not vectorise
        for lane in range(LANES):
            x = score[lane] * scale - slope * far[lane]
            x = x if far[lane] >= 0 else real(-1e30)
            score[lane] = x
            top[lane] = x if x > top[lane] else top[lane]
    for at in range(0, keys * LANES, LANES):
        score, far = s[at : at + LANES], distance[at : at + LANES]
        for lane in range(LANES):
            x = _exp(score[lane] - top[lane], real)
            x = x if far[lane] >= 0 else real(0)
            score[lane] = x
            mass[lane] += x


@njit(nogil=True, cache=True, fastmath={"contract"})
def _softmax_backward(p, ds, distance, keys, scale, slope, log_mass, delta):
    """Turn the products q.k and grad.v into the probabilities and the gradient of q.k."""
    real = p.dtype.type
    for at in range(0, keys * LANES, LANES):
        chance, gradient, far = p[at : at + LANES], ds[at : at + LANES], distance[at : at + LANES]
        for lane in range(LANES):
            x = _exp(chance[lane] * scale - slope * far[lane] - log_mass[lane], real)
            x = x if far[lane] >= 0 else real(0)
            chance[lane] = x
            gradient[lane] = x * (gradient[lane] - delta[lane]) * scale


@njit(nogil=True, cache=True)
def forward(tiles, plan, q, k, v, scale, slopes, dropout, seed, out, lse):
    """Attention of the tiles from tiles[0] to tiles[1].

    q, out: (heads, n, d or d_v) in the bag's order; lse: (heads, n); k, v: (heads, n + PAD, padded width), sorted.
    """
    real = q.dtype.type
    heads, width = len(k), v.shape[2]
    vector = _BYTES // q.itemsize
    slices = np.empty((len(plan.row_y), 3), np.int64)
    columns, rows = np.zeros(k.shape[2] * LANES, q.dtype), np.zeros(LANES * k.shape[2], q.dtype)
    total = np.empty(LANES * width, q.dtype)
    distance = s = np.empty(0, q.dtype)
    top, mass = np.empty(LANES, q.dtype), np.empty(LANES, q.dtype)
    for tile in range(tiles[0], tiles[1]):
        queries = plan.member[plan.tile_start[tile] : plan.tile_start[tile + 1]]
        found, keys = _key_slices(queries, plan, slices)
        if keys * LANES > len(s):
            distance, s = np.empty(2 * keys * LANES, q.dtype), np.empty(2 * keys * LANES, q.dtype)
        _distances(queries, slices[:found], plan, distance)
        for head in range(heads):
            _pack(q, head, queries, plan.order, columns, rows)
            _key_products(slices[:found], -(-len(queries) // vector) * vector, columns, k, head, s)
            _softmax(s, distance, keys, scale, slopes[head], top, mass)
            if dropout > 0:
                _drop(s, queries, slices[:found], plan.order, head, seed, dropout)
            _weighted_sum(slices[:found], len(queries), s, v, head, total)
            for lane, i in enumerate(queries):
                token = plan.order[i]
                lse[head, token] = top[lane] + math.log(mass[lane])
                share = real(1) / mass[lane]
                for c in range(out.shape[2]):
                    out[head, token, c] = total[lane * width + c] * share


@njit(nogil=True, cache=True)
def backward(tiles, plan, q, k, v, scale, slopes, dropout, seed, out, lse, grad, origin, dq, dk, dv):
    """Gradients of the tiles from tiles[0] to tiles[1]; shapes as in :func:`forward`.

    dq is written in the bag's order; dk and dv (heads, keys + PAD, width) hold sorted keys from `origin` on and are added to.
    """
    heads, width = len(k), k.shape[2]
    vector = _BYTES // q.itemsize
    slices = np.empty((len(plan.row_y), 3), np.int64)
    q_columns, q_rows = np.zeros(width * LANES, q.dtype), np.zeros(LANES * width, q.dtype)
    g_columns, g_rows = np.zeros(v.shape[2] * LANES, q.dtype), np.zeros(LANES * v.shape[2], q.dtype)
    total = np.empty(LANES * width, q.dtype)
    distance = p = ds = np.empty(0, q.dtype)
    delta, top = np.zeros(LANES, q.dtype), np.zeros(LANES, q.dtype)
    for tile in range(tiles[0], tiles[1]):
        queries = plan.member[plan.tile_start[tile] : plan.tile_start[tile + 1]]
        count, lanes = len(queries), -(-len(queries) // vector) * vector
        found, keys = _key_slices(queries, plan, slices)
        near = slices[:found]
        if keys * LANES > len(p):
            distance, p, ds = (
                np.empty(2 * keys * LANES, q.dtype),
                np.empty(2 * keys * LANES, q.dtype),
                np.empty(2 * keys * LANES, q.dtype),
            )
        _distances(queries, near, plan, distance)
        for head in range(heads):
            _pack(q, head, queries, plan.order, q_columns, q_rows)
            _pack(grad, head, queries, plan.order, g_columns, g_rows)
            for lane, i in enumerate(queries):
                token = plan.order[i]
                top[lane], delta[lane] = lse[head, token], 0
                for c in range(out.shape[2]):
                    delta[lane] += grad[head, token, c] * out[head, token, c]
            _key_products(near, lanes, q_columns, k, head, p)
            _key_products(near, lanes, g_columns, v, head, ds)
            if dropout > 0:
                _drop(ds, queries, near, plan.order, head, seed, dropout)
            _softmax_backward(p, ds, distance, keys, scale, slopes[head], top, delta)
            if dropout > 0:
                _drop(p, queries, near, plan.order, head, seed, dropout)
            _add_outer(near, count, p, g_rows, head, origin, dv)
            _add_outer(near, count, ds, q_rows, head, origin, dk)
            _weighted_sum(near, count, ds, k, head, total)
            for lane, i in enumerate(queries):
                token = plan.order[i]
                for c in range(dq.shape[2]):
                    dq[head, token, c] = total[lane * width + c]
