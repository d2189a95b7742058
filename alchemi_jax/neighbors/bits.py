"""Lists from bit masks: hits are or-ed into 32-bit words, the k-th hit is found by population counts.

Compaction by sorting or scatter costs as much as hundreds of force evaluations on a CPU; this needs
neither (performance notes of the design).
"""

import jax.numpy as jnp
from jax.lax import population_count
from jaxtyping import Array, Bool, Int, UInt32


WORD = 32


def pack(hits: Bool[Array, "32 *n"]) -> UInt32[Array, " *n"]:
    """32 hits of each column as one word, hit 0 in the lowest bit."""
    bit = jnp.arange(WORD, dtype=jnp.uint32).reshape((WORD,) + (1,) * (hits.ndim - 1))
    return jnp.sum(jnp.where(hits, jnp.uint32(1) << bit, jnp.uint32(0)), axis=0, dtype=jnp.uint32)


def counts(words: UInt32[Array, "words n"]) -> Int[Array, "words n"]:
    """Hits up to and including each word, in each column."""
    return jnp.cumsum(population_count(words), axis=0, dtype=jnp.int32)


def nth_hit(
    words: UInt32[Array, "words n"],
    cumulative: Int[Array, "words n"],
    k: Int[Array, " *m"],
    column: Int[Array, " *m"],
) -> Int[Array, " *m"]:
    """Place (word number times 32 plus bit) of hit number k of a column; meaningless beyond the last."""
    n_words = words.shape[0]
    low = jnp.zeros_like(k)
    step = 1 << max(n_words - 1, 0).bit_length()
    while step > 1:
        step //= 2
        probe = low + step
        before = cumulative[jnp.minimum(probe, n_words) - 1, column]
        low = jnp.where((probe < n_words) & (before <= k), probe, low)
    before = jnp.where(low > 0, cumulative[jnp.maximum(low - 1, 0), column], 0)
    word = words[low, column]
    rest = k - before
    place = jnp.zeros_like(k)
    for half in (16, 8, 4, 2, 1):
        lower = word & jnp.uint32((1 << half) - 1)
        n = population_count(lower).astype(jnp.int32)
        up = rest >= n
        rest = jnp.where(up, rest - n, rest)
        word = jnp.where(up, word >> jnp.uint32(half), lower)
        place = place + jnp.where(up, half, 0)
    return low * WORD + place
