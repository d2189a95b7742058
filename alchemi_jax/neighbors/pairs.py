"""Who is near whom within groups, through bit masks.

One candidate of every group is tested against all atoms of its group at once, 32 candidates make a
word of hits, and each slot of the list takes the next bit of every atom. Compaction by sorting or
scatter costs as much as hundreds of force evaluations on a CPU; this costs a few.
"""

import jax
import jax.numpy as jnp
from jax.lax import population_count
from jaxtyping import Array, Bool, Float, Int, UInt32

from alchemi_jax.neighbors.groups import Groups


WORD = 32


def find_hits(
    extended: list[Array],
    groups: Groups,
    reach: Float[Array, " groups"],
) -> UInt32[Array, "words groups rows"]:
    """Bit c % 32 of word c // 32 of each atom of a group: whether candidate c is within reach, Å.

    In single precision whatever that of the run, which is several times faster, with so much added to
    the reach that no pair is lost by rounding.

    Args:
        extended: x, y and z of all places, Å.
    """
    capacity = len(groups.candidates)
    words = -(-capacity // WORD)
    pad = ((0, words * WORD - capacity), (0, 0))
    candidates = jnp.pad(groups.candidates, pad, constant_values=-1)
    single = [c.astype(jnp.float32) for c in extended]

    def coordinates(places: Array) -> list[Array]:
        # A place that is none is near nothing: comparisons with NaN are false.
        there = jnp.maximum(places, 0)
        return [jnp.where(places >= 0, c.at[there].get(mode="promise_in_bounds"), jnp.nan) for c in single]

    x, y, z = coordinates(groups.atoms)
    there = [*coordinates(candidates), candidates]
    own = jnp.max(jnp.nan_to_num(jnp.maximum(jnp.maximum(abs(x), abs(y)), abs(z))), axis=1)
    reach = reach.astype(jnp.float32)
    squared = jnp.square(reach * (1 + 1e-6) + 4e-7 * (own + reach))
    bit = (jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32))[:, None, None]

    def word(w: Array, masks: Array) -> Array:
        cx, cy, cz, place = (jax.lax.dynamic_slice_in_dim(v, w * WORD, WORD)[:, :, None] for v in there)
        dx, dy, dz = cx - x[None], cy - y[None], cz - z[None]
        hit = dx * dx + dy * dy + dz * dz <= squared[None, :, None]
        hit &= place != groups.atoms[None]
        packed = jnp.sum(jnp.where(hit, bit, jnp.uint32(0)), axis=0, dtype=jnp.uint32)
        return jax.lax.dynamic_update_index_in_dim(masks, packed, w, 0)

    needed = jnp.minimum(-(-groups.count.max() // WORD), words)
    masks = jnp.zeros((words, *groups.atoms.shape), jnp.uint32)
    return jax.lax.fori_loop(0, needed, word, masks)


def list_hits(
    masks: UInt32[Array, "words groups rows"], groups: Groups, slots: int, real: Bool[Array, " atoms"]
) -> tuple[Int[Array, "slots atoms"], Int[Array, " atoms"]]:
    """The places of each atom's hits in the order of the candidates, -1 beyond the last; how many."""
    words, n_groups, rows = masks.shape
    masks = masks.reshape(words, n_groups * rows)
    found = population_count(masks).sum(axis=0, dtype=jnp.int32)[groups.place]
    found = jnp.where(real, found, 0)

    # The next word with a hit, from each on.
    def back(following: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        w, mask = at
        here = jnp.where(mask != 0, w, following)
        return here, here

    last = jnp.full(n_groups * rows, words - 1, jnp.int32)
    _, following = jax.lax.scan(back, last, (jnp.arange(words, dtype=jnp.int32), masks), reverse=True)
    group = groups.place // rows

    def slot(k: Array, state: tuple) -> tuple:
        index, w, word = state
        spent = word == 0
        w = jnp.where(spent, following[jnp.minimum(w + 1, words - 1), groups.place], w)
        word = jnp.where(spent, masks[w, groups.place], word)
        rest = word & (word - jnp.uint32(1))
        bit = population_count((word ^ rest) - jnp.uint32(1)).astype(jnp.int32)
        candidate = jnp.minimum(w * WORD + bit, groups.candidates.shape[0] - 1)
        place = jnp.where(k < found, groups.candidates[candidate, group], -1)
        return jax.lax.dynamic_update_index_in_dim(index, place, k, 0), w, rest

    n = len(groups.place)
    begin = (jnp.full((slots, n), -1, jnp.int32), jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.uint32))
    used = jnp.minimum(found.max(), slots)
    return jax.lax.fori_loop(0, used, slot, begin)[0], found
