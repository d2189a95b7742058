"""Sums over the neighbors of each atom, for models that are more than a pair energy.

`neighbor_sums` is the loop of pair potentials for any terms: on a CPU one neighbor slot after another;
elsewhere the whole neighbor matrix at once. It can be differentiated any number of times, because its rule
uses the matrix. `near_first` is the list of those within the cutoff alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from alchemi_jax.neighbors import NeighborList, extended_positions
from alchemi_jax.systems.batch import Batch


Coordinates = tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]
Terms = Callable[..., tuple[Float[Array, "*pairs"], ...]]


def coordinates(
    batch: Batch, neighbors: NeighborList
) -> tuple[Float[Array, " extended"], Float[Array, " extended"], Float[Array, " extended"]]:
    """x, y, z of the extended array, each [extended], Å."""
    extended = extended_positions(batch, neighbors)
    return extended[:, 0], extended[:, 1], extended[:, 2]


def extend(values: Any, neighbors: NeighborList) -> Any:
    """Arrays of atoms as arrays over the extended array (the far place gets the value of the first atom)."""
    return jax.tree.map(lambda v: jnp.concatenate([v, v[neighbors.source], v[:1]]), values)


def gather(values: Any, index: Int[Array, "*n"]) -> Any:
    """Rows of arrays, for indices that are in bounds: NumPy's rules for others take a tenth of the time."""
    return jax.tree.map(
        lambda v: v.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False), values
    )


def _matrix(
    terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList, given: tuple, keep: int
) -> tuple:
    n = neighbors.index.shape[1]
    d = tuple(gather(c, neighbors.index) - c[None, :n] for c in places)
    own = jax.tree.map(lambda v: v[None, :n], values)
    found = terms(model, d, own, gather(values, neighbors.index), *given)
    summed = len(found) - keep
    return tuple(t.sum(axis=0) if k < summed else t for k, t in enumerate(found))


def _reader(places: tuple, values: Any) -> Callable[[Int[Array, "*n"]], tuple[tuple, Any]]:
    """A function from indices to coordinates and values. Four numbers side by side are gathered faster:
    x, y, z and a single value, or in single precision x, y and z alone."""
    dtype = places[0].dtype
    one = isinstance(values, jax.Array) and values.ndim == 1 and values.dtype == dtype
    if not one and dtype.itemsize > 4:
        return lambda j: gather((places, values), j)
    rows = jnp.stack([*places, values if one else places[0]], axis=-1)

    def read(j: Int[Array, "*n"]) -> tuple[tuple, Any]:
        found = gather(rows, j)
        x, y, z, value = (found[..., k] for k in range(4))
        return (x, y, z), value if one else gather(values, j)

    return read


def _slots(
    terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList, given: tuple, keep: int
) -> tuple:
    slots, n = neighbors.index.shape
    centre = tuple(c[:n] for c in places)
    own = jax.tree.map(lambda v: v[:n], values)
    read = _reader(places, values)

    def slot(k: Int[Array, ""] | int) -> tuple:
        j = neighbors.index[k]
        found, other = read(j)
        d = tuple(c - c0 for c, c0 in zip(found, centre, strict=True))
        return terms(model, d, own, other, *(v[k] for v in given))

    shapes = jax.eval_shape(slot, jnp.zeros((), jnp.int32))
    summed = len(shapes) - keep
    start = tuple(
        jnp.zeros(t.shape if k < summed else (slots, *t.shape), t.dtype) for k, t in enumerate(shapes)
    )

    def step(k: Int[Array, ""], carry: tuple) -> tuple:
        found = slot(k)
        sums = (s + t for s, t in zip(carry[:summed], found[:summed], strict=True))
        kept = (s.at[k].set(t) for s, t in zip(carry[summed:], found[summed:], strict=True))
        return (*sums, *kept)

    return jax.lax.fori_loop(0, neighbors.used, step, start)


def neighbor_sums(
    terms: Terms,
    model: Any,
    places: tuple,
    values: Any,
    neighbors: NeighborList,
    given: tuple = (),
    *,
    keep: int = 0,
) -> tuple:
    """Sums of terms over the neighbors of each atom.

    Args:
        terms: a module-level function, terms(model, (x, y, z), own, other, *given) -> tuple of arrays: for
            vectors from an atom to a neighbor, Å, and the values of both, [atoms] or broadcast to
            [neighbors, atoms]. Unused slots are 10^6 Å away; terms must be zero there, and
            differentiable.
        places: from `coordinates`.
        values: arrays over the extended array, from `extend`.
        given: arrays [neighbors, atoms], such as those that were kept of an earlier call.
        keep: so many of the last terms are not summed.

    Returns:
        One array [atoms] for each term, but [neighbors, atoms] for those that are kept.
    """
    return _neighbor_sums(terms, model, places, values, neighbors, given, keep=keep)


@eqx.filter_custom_jvp
def _neighbor_sums(
    terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList, given: tuple, *, keep: int
) -> tuple:
    arrays, static = eqx.partition((model, places, values, neighbors, given), eqx.is_array)

    def run(kernel: Callable[..., tuple]) -> Callable[[Any], tuple]:
        return lambda a: kernel(terms, *eqx.combine(a, static), keep)

    return jax.lax.platform_dependent(arrays, cpu=run(_slots), default=run(_matrix))


@_neighbor_sums.def_jvp
def _neighbor_sums_jvp(primals: tuple, tangents: tuple, *, keep: int) -> tuple:
    return jvp_of(partial(_matrix, keep=keep), primals, tangents)


def jvp_of(f: Callable[..., Any], primals: tuple, tangents: tuple) -> tuple:
    """Values and tangents of f. A tangent None means that its primal is constant."""
    moves = jax.tree.map(lambda t: t is not None, tuple(tangents), is_leaf=lambda t: t is None)
    moving = eqx.filter(tuple(primals), moves)
    rest = eqx.filter(tuple(primals), moves, inverse=True)
    return jax.jvp(lambda m: f(*eqx.combine(m, rest)), (moving,), (tuple(tangents),))


def near_first(places: tuple, neighbors: NeighborList, cutoff: float) -> NeighborList:
    """The list with only the neighbors within the cutoff, in their order, in the first slots.

    A bit for each slot says whether its neighbor is near; then the k-th near one of all atoms is found by the
    lowest bits. No derivative goes through it, as it only chooses.

    Args:
        places: from `coordinates`.
        neighbors: the list with those within the skin, too.
        cutoff: Å.
    """
    places = jax.lax.stop_gradient(places)
    slots, n = neighbors.index.shape
    centre = tuple(c[:n] for c in places)

    def mark(k: Int[Array, ""], word: UInt[Array, " atoms"]) -> UInt[Array, " atoms"]:
        j = neighbors.index[k]
        x, y, z = (gather(c, j) - c0 for c, c0 in zip(places, centre, strict=True))
        near = x * x + y * y + z * z <= cutoff**2
        return word | (near.astype(jnp.uint32) << (k % 32).astype(jnp.uint32))

    words = []
    for first in range(0, slots, 32):
        end = jnp.minimum(neighbors.used, min(first + 32, slots))
        words.append(jax.lax.fori_loop(jnp.int32(first), end, mark, jnp.zeros(n, jnp.uint32)))
    count = sum(jax.lax.population_count(w).astype(jnp.int32) for w in words)
    # Unused slots point to the last place of the extended array.
    far = len(places[0]) - 1
    flat, column = neighbors.index.reshape(-1), jnp.arange(n, dtype=jnp.int32)

    def take(k: Int[Array, ""], carry: tuple) -> tuple:
        index, *words = carry
        found = jnp.zeros(n, bool)
        slot = jnp.zeros(n, jnp.int32)
        left = []
        for number, word in enumerate(words):
            here = (word != 0) & ~found
            lowest = 31 - jax.lax.clz(word & (~word + 1)).astype(jnp.int32)
            slot = jnp.where(here, 32 * number + lowest, slot)
            left.append(jnp.where(here, word & (word - 1), word))
            found |= here
        return index.at[k].set(jnp.where(found, gather(flat, slot * n + column), far)), *left

    used = jnp.max(jnp.asarray(count), initial=0)
    index, *_ = jax.lax.fori_loop(0, used, take, (jnp.full_like(neighbors.index, far), *words))
    return dataclasses.replace(neighbors, index=index, used=used)


__all__ = ["Coordinates", "Terms", "coordinates", "extend", "gather", "jvp_of", "near_first", "neighbor_sums"]
