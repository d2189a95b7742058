"""Running sums and searches as loops of few kernels.

On a CPU XLA makes eight kernels of a `cumsum` of some thousand numbers and twenty of a `repeat`, and each
takes longer to compile than to run. These loops are two kernels each and about as fast.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


MOST = 1 << 24
"""Running sums do not exceed this, so that the needs of a collapsed cell cannot overflow integers."""


def scan_with(
    join: Callable[[Shaped[Array, " n"], Shaped[Array, " n"]], Shaped[Array, " n"]],
    values: Shaped[Array, " n"],
    nothing: Shaped[Array, ""],
) -> Shaped[Array, " n"]:
    """The prefixes of an array under an associative function. Round k joins each with the one 2^k before.

    Args:
        nothing: the neutral element on the left.
    """
    n = len(values)
    before = jnp.full(n, nothing, values.dtype)

    def double(k: Int[Array, ""] | int, joined: Shaped[Array, " n"]) -> Shaped[Array, " n"]:
        earlier = jax.lax.dynamic_slice(jnp.concatenate([before, joined]), (n - (1 << k),), (n,))
        return join(earlier, joined)

    return jax.lax.fori_loop(0, (n - 1).bit_length(), double, values)


def running_sum(values: Int[Array, " n"]) -> Int[Array, " n"]:
    """Cumulative sum, at most MOST. No value may be negative or larger than MOST."""
    return scan_with(lambda a, b: jnp.minimum(a + b, MOST), values, jnp.zeros((), values.dtype))


def count_upto(ascending: Int[Array, " n"], limits: Int[Array, "*m"]) -> Int[Array, "*m"]:
    """How many of the ascending numbers are at most as large as each limit; a search bit by bit."""
    n = len(ascending)
    bits = n.bit_length()

    def decide(k: Int[Array, ""] | int, count: Int[Array, "*m"]) -> Int[Array, "*m"]:
        more = count + (1 << (bits - 1 - k))
        last = jnp.minimum(more, n) - 1
        number = ascending.at[last].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where((more <= n) & (number <= limits), more, count)

    return jax.lax.fori_loop(0, bits, decide, jnp.zeros(limits.shape, jnp.int32))


__all__ = ["MOST", "count_upto", "running_sum", "scan_with"]
