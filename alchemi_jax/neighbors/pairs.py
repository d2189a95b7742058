"""Find pairs within groups, with bit masks.

One candidate of each group is tested against all atoms of its group at once. 32 candidates make a word of
hits, and each slot of the list takes the next bit of each atom. On a CPU this costs as much as a few force
evaluations; compaction by sorting or scatter costs as much as hundreds.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from alchemi_jax.neighbors.groups import WORD, Groups
from alchemi_jax.systems.segments import largest_of


_BITS = np.uint32(1) << np.arange(WORD, dtype=np.uint32)


class Hits(NamedTuple):
    """Which candidates are near the atoms of each group."""

    masks: UInt32[Array, "words groups rows"]
    """Bit c % 32 of word c // 32: whether candidate c is within reach."""
    following: Int[Array, "words groups rows"]
    """For each word, the first word with a hit from there on."""
    found: Int[Array, "groups rows"]
    """Number of hits."""


def find_hits(extended: Float[Array, "3 places"], groups: Groups, reach: Float[Array, " groups"]) -> Hits:
    """Test all candidates of each group against its atoms.

    In single precision whatever the dtype of the run, which is several times faster. A margin is added to the
    reach, so that no pair is lost by rounding.

    Args:
        extended: Å.
        reach: Å.
    """
    words, rows = len(groups.candidates) // WORD, groups.atoms.shape[1]
    single = extended.astype(jnp.float32)

    def coordinates(places: Int[Array, "*n"]) -> list[Float[Array, "*n"]]:
        # Where there is no place the coordinates are NaN, and comparisons with NaN are false.
        there = jnp.maximum(places, 0)
        return [jnp.where(places >= 0, c.at[there].get(mode="promise_in_bounds"), jnp.nan) for c in single]

    # One array per coordinate: with one array of all three the loop below takes eight times as long.
    x, y, z = coordinates(groups.atoms)
    candidates = [*coordinates(groups.candidates), groups.candidates]
    own = largest_of(jnp.nan_to_num(jnp.maximum(jnp.maximum(abs(x), abs(y)), abs(z))))
    reach = reach.astype(jnp.float32)
    squared = jnp.square(reach * (1 + 1e-6) + 4e-7 * (own + reach))
    bit = _BITS[:, None, None]
    needed = jnp.minimum(-(-groups.needs[0] // WORD), words)

    def word(state: tuple) -> tuple:
        w, masks, following, next_word, found = state
        cx, cy, cz, place = (jax.lax.dynamic_slice_in_dim(v, w * WORD, WORD)[:, :, None] for v in candidates)
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
    # From the last word to the first, so that each knows the next word with a hit.
    _, masks, following, _, found = jax.lax.while_loop(lambda state: state[0] >= 0, word, begin)
    return Hits(masks, following, found)


def list_hits(
    hits: Hits, groups: Groups, slots: int, real: Bool[Array, " atoms"], far: int
) -> tuple[Int[Array, "slots atoms"], Int[Array, " atoms"]]:
    """Places of the hits of each atom in the order of the candidates, `far` in unused slots; their number."""
    words, n_groups, rows = hits.masks.shape
    masks, following = (v.reshape(words, n_groups * rows) for v in (hits.masks, hits.following))
    group = groups.place // rows

    def take(values: Shaped[Array, "*m"], *index: Int[Array, " n"]) -> Shaped[Array, " n"]:
        return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)

    found = jnp.where(real, take(hits.found.reshape(-1), groups.place), 0)

    def slot(k: Int[Array, ""] | int, state: tuple) -> tuple:
        index, w, word = state
        spent = word == 0
        w = jnp.where(spent, take(following, jnp.minimum(w + 1, words - 1), groups.place), w)
        word = jnp.where(spent, take(masks, w, groups.place), word)
        rest = word & (word - jnp.uint32(1))
        bit = population_count((word ^ rest) - jnp.uint32(1)).astype(jnp.int32)
        candidate = jnp.minimum(w * WORD + bit, groups.candidates.shape[0] - 1)
        # As an unsigned number -1 is large, and so may be what an overflow left: both become `far`.
        place = take(groups.candidates, candidate, group).astype(jnp.uint32)
        place = jnp.where(k < found, jnp.minimum(place, far).astype(jnp.int32), far)
        return jax.lax.dynamic_update_index_in_dim(index, place, k, 0), w, rest

    n = len(groups.place)
    begin = (jnp.full((slots, n), far, jnp.int32), jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.uint32))
    used = jnp.minimum(largest_of(found), slots)
    return jax.lax.fori_loop(0, used, slot, begin)[0], found
