"""Seeds from named axes, so that every random draw can be made again."""

import hashlib


def derive_seed(*axes: object) -> int:
    """A seed of 63 bits from named axes: equal axes mean equal draws, whatever else differs.

    All aggregators share dataset, split, fold and seed, and so the order of bags: comparisons are paired.
    """
    return int.from_bytes(hashlib.sha256("|".join(map(str, axes)).encode()).digest()[:8]) >> 1
