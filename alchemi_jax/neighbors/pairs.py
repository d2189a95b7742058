"""Find pairs within groups, with bit masks.

One candidate of each group is tested against all atoms of its group at once. 32 candidates make a word of
hits, and each slot of the list takes the next bit of each atom. On a CPU this costs as much as a few force
evaluations; compaction by sorting or scatter costs as much as hundreds.

On an accelerator a loop of some hundred turns costs a launch of several kernels each, so all words are tested
at once, and the bit of each slot is found by bisection. The list is the same.
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


class _Test(NamedTuple):
    """What candidates are compared with."""

    own: list[Float[Array, "groups rows"]]
    """Coordinates of the atoms; NaN where there is none, with which comparisons are false."""
    candidates: list[Shaped[Array, "candidates groups"]]
    """Coordinates, and places."""
    squared: Float[Array, " groups"]
    """The largest square of a distance, Å²."""


_Listed = tuple[Int[Array, "slots atoms"], Int[Array, " atoms"]]


def list_pairs(
    extended: Float[Array, "3 places"],
    groups: Groups,
    reach: Float[Array, " groups"],
    slots: int,
    real: Bool[Array, " atoms"],
    far: int,
) -> _Listed:
    """Places of the neighbors of each atom in the order of candidates, `far` in unused slots; their number.

    Args:
        extended: Å.
        reach: Å.
        real: which atoms are no padding.
    """

    def looped(test: _Test, groups: Groups, real: Bool[Array, " atoms"]) -> _Listed:
        return _list_hits(_find_hits(test, groups), groups, slots, real, far)

    def at_once(test: _Test, groups: Groups, real: Bool[Array, " atoms"]) -> _Listed:
        return _list_at_once(test, groups, slots, real, far)

    test = _prepare(extended, groups, reach)
    return jax.lax.platform_dependent(test, groups, real, cpu=looped, default=at_once)


def _prepare(extended: Float[Array, "3 places"], groups: Groups, reach: Float[Array, " groups"]) -> _Test:
    """In single precision whatever the dtype of the run, which is several times faster. A margin is added to
    the reach, so that no pair is lost by rounding."""
    single = extended.astype(jnp.float32)

    def coordinates(places: Int[Array, "*n"]) -> list[Float[Array, "*n"]]:
        there = jnp.maximum(places, 0)
        return [jnp.where(places >= 0, c.at[there].get(mode="promise_in_bounds"), jnp.nan) for c in single]

    # One array per coordinate: with one array of all three the loop below takes eight times as long.
    x, y, z = coordinates(groups.atoms)
    candidates = [*coordinates(groups.candidates), groups.candidates]
    own = largest_of(jnp.nan_to_num(jnp.maximum(jnp.maximum(abs(x), abs(y)), abs(z))))
    reach = reach.astype(jnp.float32)
    return _Test([x, y, z], candidates, jnp.square(reach * (1 + 1e-6) + 4e-7 * (own + reach)))


def _are_near(
    test: _Test, groups: Groups, some: list[Shaped[Array, "*n groups 1"]]
) -> Bool[Array, "*n groups rows"]:
    """Whether candidates are within reach of the atoms of their group."""
    cx, cy, cz, place = some
    own = (*test.own, test.squared[:, None], groups.atoms)
    x, y, z, squared, atoms = (jnp.expand_dims(v, tuple(range(place.ndim - 2))) for v in own)
    dx, dy, dz = cx - x, cy - y, cz - z
    return (dx * dx + dy * dy + dz * dz <= squared) & (place != atoms)


def _find_hits(test: _Test, groups: Groups) -> Hits:
    """Test all candidates of each group against its atoms, one word after another."""
    words, rows = len(groups.candidates) // WORD, groups.atoms.shape[1]
    bit = _BITS[:, None, None]
    needed = jnp.minimum(-(-groups.needs[0] // WORD), words)

    def word(state: tuple) -> tuple:
        w, masks, following, next_word, found = state
        some = [jax.lax.dynamic_slice_in_dim(v, w * WORD, WORD)[:, :, None] for v in test.candidates]
        hit = _are_near(test, groups, some)
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


def _take(values: Shaped[Array, "*m"], *index: Int[Array, "*n"]) -> Shaped[Array, "*n"]:
    return values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _place_of(
    groups: Groups, candidate: Int[Array, "*n"], group: Int[Array, "*n"], used: Bool[Array, "*n"], far: int
) -> Int[Array, "*n"]:
    """The place of a candidate of a group; `far` where a slot is not used."""
    candidate = jnp.minimum(candidate, groups.candidates.shape[0] - 1)
    # As an unsigned number -1 is large, and so may be what an overflow left: both become `far`.
    place = _take(groups.candidates, candidate, group).astype(jnp.uint32)
    return jnp.where(used, jnp.minimum(place, far).astype(jnp.int32), far)


def _list_hits(hits: Hits, groups: Groups, slots: int, real: Bool[Array, " atoms"], far: int) -> _Listed:
    """The list, one slot after another."""
    words, n_groups, rows = hits.masks.shape
    masks, following = (v.reshape(words, n_groups * rows) for v in (hits.masks, hits.following))
    group = groups.place // rows

    found = jnp.where(real, _take(hits.found.reshape(-1), groups.place), 0)

    def slot(k: Int[Array, ""] | int, state: tuple) -> tuple:
        index, w, word = state
        spent = word == 0
        w = jnp.where(spent, _take(following, jnp.minimum(w + 1, words - 1), groups.place), w)
        word = jnp.where(spent, _take(masks, w, groups.place), word)
        rest = word & (word - jnp.uint32(1))
        bit = population_count((word ^ rest) - jnp.uint32(1)).astype(jnp.int32)
        place = _place_of(groups, w * WORD + bit, group, k < found, far)
        return jax.lax.dynamic_update_index_in_dim(index, place, k, 0), w, rest

    n = len(groups.place)
    begin = (jnp.full((slots, n), far, jnp.int32), jnp.full(n, -1, jnp.int32), jnp.zeros(n, jnp.uint32))
    used = jnp.minimum(largest_of(found), slots)
    return jax.lax.fori_loop(0, used, slot, begin)[0], found


def _list_at_once(test: _Test, groups: Groups, slots: int, real: Bool[Array, " atoms"], far: int) -> _Listed:
    """The hits and the list without loops, for accelerators."""
    words, rows = len(groups.candidates) // WORD, groups.atoms.shape[1]
    some = [v.reshape(words, WORD, -1, 1) for v in test.candidates]
    hit = _are_near(test, groups, some)
    masks = jnp.sum(jnp.where(hit, _BITS[None, :, None, None], jnp.uint32(0)), axis=1, dtype=jnp.uint32)
    # For each atom the words, and the hits up to each of them.
    word = jnp.take(masks.reshape(words, -1), groups.place, axis=1, mode="clip")
    upto = jnp.cumsum(population_count(word).astype(jnp.int32), axis=0)
    found = jnp.where(real, upto[-1], 0)

    slot = jnp.arange(slots, dtype=jnp.int32)[:, None]
    atom = jnp.arange(len(groups.place), dtype=jnp.int32)[None]
    # Words that end before the hit, then bits of its word.
    before = jnp.zeros((slots, len(groups.place)), jnp.int32)
    for k in reversed(range(words.bit_length())):
        more = before + (1 << k)
        passed = _take(upto, jnp.minimum(more, words) - 1, jnp.broadcast_to(atom, before.shape)) <= slot
        before = jnp.where((more <= words) & passed, more, before)
    last = jnp.minimum(before, words - 1)
    atoms = jnp.broadcast_to(atom, before.shape)
    rest = slot - jnp.where(before > 0, _take(upto, jnp.maximum(before - 1, 0), atoms), 0)
    bits, bit = _take(word, last, atoms), jnp.zeros_like(before)
    for k in reversed(range(WORD.bit_length() - 1)):
        low = bits & jnp.uint32((1 << (1 << k)) - 1)
        count = population_count(low).astype(jnp.int32)
        above = rest >= count
        rest = jnp.where(above, rest - count, rest)
        bit = jnp.where(above, bit + (1 << k), bit)
        bits = jnp.where(above, bits >> jnp.uint32(1 << k), low)
    group = jnp.broadcast_to((groups.place // rows)[None], before.shape)
    return _place_of(groups, last * WORD + bit, group, slot < found[None], far), found


__all__ = ["Hits", "list_pairs"]
