"""Numbers that half precision cannot hold."""

from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """The tensor, in float32 where it is float16 or bfloat16; for sums over many instances and for divisions by small numbers.

    Under autocast the products that follow are in half precision again, unless it is switched off for them.
    """
    return x.float() if x.element_size() < 4 else x
