"""Running sums and searches as loops of few kernels.

XLA makes eight kernels of a `cumsum` of some thousand numbers on a CPU, and twenty of a `repeat`, and each
takes longer to compile than to run. These loops are two kernels each and about as fast.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


MOST = 1 << 24
"""Running sums stop here, so that what a collapsed cell asks for cannot overflow integers."""


def scan_with(
    join: Callable[[Array, Array], Array], values: Shaped[Array, " n"], nothing: Shaped[Array, ""]
) -> Shaped[Array, " n"]:
    """All values up to each joined by an associative function: in turn k with what is 2^k before.

    Args:
        nothing: what joins without effect from the left.
    """
    n = len(values)
    before = jnp.full(n, nothing, values.dtype)

    def double(k: Array, joined: Array) -> Array:
        earlier = jax.lax.dynamic_slice(jnp.concatenate([before, joined]), (n - (1 << k),), (n,))
        return join(earlier, joined)

    return jax.lax.fori_loop(0, (n - 1).bit_length(), double, values)


def running_sum(values: Int[Array, " n"]) -> Int[Array, " n"]:
    """Sum of all values up to each, at most MOST; none is negative or larger than that."""
    return scan_with(lambda a, b: jnp.minimum(a + b, MOST), values, jnp.zeros((), values.dtype))


def count_upto(ascending: Int[Array, " n"], limits: Int[Array, "*m"]) -> Int[Array, "*m"]:
    """How many of some ascending numbers are at most as large as each limit, bit by bit from the highest."""
    n = len(ascending)
    bits = n.bit_length()

    def decide(k: Array, count: Array) -> Array:
        more = count + (1 << (bits - 1 - k))
        last = jnp.minimum(more, n) - 1
        number = ascending.at[last].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where((more <= n) & (number <= limits), more, count)

    return jax.lax.fori_loop(0, bits, decide, jnp.zeros(limits.shape, jnp.int32))
