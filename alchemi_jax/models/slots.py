"""Sums over the neighbors of each atom, for models that are more than a pair energy.

`neighbor_sums` is the loop of pair potentials for any terms: on a CPU one neighbor slot after another, with
no array longer than the number of atoms; elsewhere the whole neighbor matrix at once. It can be
differentiated any number of times, because its rule uses the matrix.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.neighbors import NeighborList, extended_positions
from alchemi_jax.systems.batch import Batch


Coordinates = tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]
Terms = Callable[[Any, Coordinates, Any, Any], tuple[Float[Array, "*pairs"], ...]]


def coordinates(
    batch: Batch, neighbors: NeighborList
) -> tuple[Float[Array, " extended"], Float[Array, " extended"], Float[Array, " extended"]]:
    """x, y, z of the extended array, each [extended], Å."""
    extended = extended_positions(batch, neighbors)
    return extended[:, 0], extended[:, 1], extended[:, 2]


def extend(values: Any, neighbors: NeighborList) -> Any:
    """Arrays of atoms as arrays over the extended array (the far place gets the value of the first atom)."""
    return jax.tree.map(lambda v: jnp.concatenate([v, v[neighbors.source], v[:1]]), values)


def _matrix(terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList) -> tuple:
    n = neighbors.index.shape[1]
    d = tuple(c[neighbors.index] - c[None, :n] for c in places)
    own = jax.tree.map(lambda v: v[None, :n], values)
    other = jax.tree.map(lambda v: v[neighbors.index], values)
    return tuple(t.sum(axis=0) for t in terms(model, d, own, other))


def _slots(terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList) -> tuple:
    n = neighbors.index.shape[1]
    centre = tuple(c[:n] for c in places)
    own = jax.tree.map(lambda v: v[:n], values)

    def slot(k: Int[Array, ""] | int) -> tuple:
        j = neighbors.index[k]
        d = tuple(c[j] - c0 for c, c0 in zip(places, centre, strict=True))
        return terms(model, d, own, jax.tree.map(lambda v: v[j], values))

    zeros = jax.tree.map(
        lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(slot, jnp.zeros((), jnp.int32))
    )
    return jax.lax.fori_loop(0, neighbors.used, lambda k, s: jax.tree.map(jnp.add, s, slot(k)), zeros)


@eqx.filter_custom_jvp
def neighbor_sums(terms: Terms, model: Any, places: tuple, values: Any, neighbors: NeighborList) -> tuple:
    """Sums of terms over the neighbors of each atom.

    Args:
        terms: a module-level function, terms(model, (x, y, z), own, other) -> tuple of arrays: for
            vectors from an atom to a neighbor, Å, and the values of both, [atoms] or broadcast to
            [neighbors, atoms]. Unused slots are 10^6 Å away; terms must be zero there, and
            differentiable.
        places: from `coordinates`.
        values: arrays over the extended array, from `extend`.

    Returns:
        One array [atoms] for each term.
    """
    arrays, static = eqx.partition((model, places, values, neighbors), eqx.is_array)

    def run(kernel: Callable[..., tuple]) -> Callable[[Any], tuple]:
        return lambda a: kernel(terms, *eqx.combine(a, static))

    return jax.lax.platform_dependent(arrays, cpu=run(_slots), default=run(_matrix))


@neighbor_sums.def_jvp
def _neighbor_sums_jvp(primals: tuple, tangents: tuple) -> tuple:
    return jvp_of(_matrix, primals, tangents)


def jvp_of(f: Callable[..., Any], primals: tuple, tangents: tuple) -> tuple:
    """Values and tangents of f. A tangent None means that its primal is constant."""
    moves = jax.tree.map(lambda t: t is not None, tuple(tangents), is_leaf=lambda t: t is None)
    moving = eqx.filter(tuple(primals), moves)
    rest = eqx.filter(tuple(primals), moves, inverse=True)
    return jax.jvp(lambda m: f(*eqx.combine(m, rest)), (moving,), (tuple(tangents),))


__all__ = ["Coordinates", "Terms", "coordinates", "extend", "jvp_of", "neighbor_sums"]
