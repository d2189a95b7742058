"""Who is near whom within groups, through bit masks.

One candidate of every group is tested against all atoms of its group at once, 32 candidates make a
word of hits, and each slot of the list takes the next bit of every atom. Compaction by sorting or
scatter costs as much as hundreds of force evaluations on a CPU; this costs a few.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int, UInt32

from alchemi_jax.neighbors.groups import WORD, Groups
from alchemi_jax.systems.segments import largest_of


_BITS = np.uint32(1) << np.arange(WORD, dtype=np.uint32)


class Hits(NamedTuple):
    """Which candidates are near the atoms of each group."""

    masks: UInt32[Array, "words groups rows"]
    """Bit c % 32 of word c // 32: whether candidate c is within reach."""
    following: Int[Array, "words groups rows"]
    """The next word with a hit, from each on."""
    found: Int[Array, "groups rows"]
    """How many hits."""


def find_hits(extended: Float[Array, "3 places"], groups: Groups, reach: Float[Array, " groups"]) -> Hits:
    """Tests all candidates of each group against its atoms.

    In single precision whatever that of the run, which is several times faster, with so much added to
    the reach that no pair is lost by rounding.

    Args:
        extended: Å.
        reach: Å.
    """
    words, rows = len(groups.candidates) // WORD, groups.atoms.shape[1]
    single = extended.astype(jnp.float32)

    def coordinates(places: Array) -> list[Array]:
        # A place that is none is near nothing: comparisons with NaN are false.
        there = jnp.maximum(places, 0)
        return [jnp.where(places >= 0, c.at[there].get(mode="promise_in_bounds"), jnp.nan) for c in single]

    # Coordinates apart: the loop below takes eight times as long with an array of all three.
    x, y, z = coordinates(groups.atoms)
    there = [*coordinates(groups.candidates), groups.candidates]
    own = largest_of(jnp.nan_to_num(jnp.maximum(jnp.maximum(abs(x), abs(y)), abs(z))), 0)
    reach = reach.astype(jnp.float32)
    squared = jnp.square(reach * (1 + 1e-6) + 4e-7 * (own + reach))
    bit = _BITS[:, None, None]
    needed = jnp.minimum(-(-groups.needs[0] // WORD), words)

    def word(state: tuple) -> tuple:
        w, masks, following, next_word, found = state
        cx, cy, cz, place = (jax.lax.dynamic_slice_in_dim(v, w * WORD, WORD)[:, :, None] for v in there)
        dx, dy, dz = cx - x[None], cy - y[None], cz - z[None]
        hit = dx * dx + dy * dy + dz * dz <= squared[None, :, None]
        hit &= place != groups.atoms[None]
        packed = jnp.sum(jnp.where(hit, bit, jnp.uint32(0)), axis=0, dtype=jnp.uint32)
        next_word = jnp.where(packed != 0, w, next_word)
        return (
            w - 1,
            jax.lax.dynamic_update_index_in_dim(masks, packed, w, 0),
            jax.lax.dynamic_update_index_in_dim(following, next_word, w, 0),
            next_word,
            found + population_count(packed).astype(jnp.int32),
        )

    shape = (groups.atoms.shape[0], rows)
    begin = (
        needed - 1,
        jnp.zeros((words, *shape), jnp.uint32),
        jnp.zeros((words, *shape), jnp.int32),
        jnp.full(shape, words - 1, jnp.int32),
        jnp.zeros(shape, jnp.int32),
    )
    # From the last word to the first, which so know the next one with a hit.
    _, masks, following, _, found = jax.lax.while_loop(lambda state: state[0] >= 0, word, begin)
    return Hits(masks, following, found)


def list_hits(
    hits: Hits, groups: Groups, slots: int, real: Bool[Array, " atoms"], far: int
) -> tuple[Int[Array, "slots atoms"], Int[Array, " atoms"]]:
    """The places of each atom's hits in the order of the candidates, `far` beyond the last; how many."""
    words, n_groups, rows = hits.masks.shape
    masks, following = (v.reshape(words, n_groups * rows) for v in (hits.masks, hits.following))
    group = groups.place // rows

    def take(values: Array, *index: Array) -> Array:
        return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    found = jnp.where(real, take(hits.found.reshape(-1), groups.place), 0)

    def slot(k: Array, state: tuple) -> tuple:
        index, w, word = state
        spent = word == 0
        w = jnp.where(spent, take(following, jnp.minimum(w + 1, words - 1), groups.place), w)
        word = jnp.where(spent, take(masks, w, groups.place), word)
        rest = word & (word - jnp.uint32(1))
        bit = population_count((word ^ rest) - jnp.uint32(1)).astype(jnp.int32)
        candidate = jnp.minimum(w * WORD + bit, groups.candidates.shape[0] - 1)
        # As a positive number -1 is large, and what an overflow left may be: kernels need not check.
        place = take(groups.candidates, candidate, group).astype(jnp.uint32)
        place = jnp.where(k < found, jnp.minimum(place, far).astype(jnp.int32), far)
        return jax.lax.dynamic_update_index_in_dim(index, place, k, 0), w, rest

    n = len(groups.place)
    begin = (jnp.full((slots, n), far, jnp.int32), jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.uint32))
    used = jnp.minimum(largest_of(found, 0), slots)
    return jax.lax.fori_loop(0, used, slot, begin)[0], found
