"""A function of many rows, in chunks that stay in the cache of a core, with sums of what comes out.

A graph network computes rows of features per edge or angle from rows gathered from tables of atoms or bonds,
and adds them up again. Whole arrays of such rows do not fit into any cache, and writing and reading them
takes most of the time. Here a chunk is gathered, computed and added before the next one begins, and in the
reverse pass computed again. Chunks that are all padding are skipped.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int


_LARGEST = 256
_LEAST = 64


class Rows(NamedTuple):
    """The rows of a computation, to be added up.

    Attributes:
        tables: arrays [n, features], one per entry of `indices`.
        indices: for each table [rows], which row of it each row gets.
        values: a tree of arrays [rows, ...].
        target: [rows], where the result of a row is added; indices out of range are dropped.
        used: number of rows that are not padding; they come first.
    """

    tables: tuple[Float[Array, "_ features"], ...]
    indices: tuple[Int[Array, " rows"], ...]
    values: Any
    target: Int[Array, " rows"]
    used: Int[Array, ""]


def chunk_size(rows: int) -> int:
    """The largest power of two that divides the number of rows, at most 256; all rows if it is small."""
    size = min(_LARGEST, rows & -rows)
    return size if size >= _LEAST else rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_chunks(
    function: Callable[[Any, tuple[Array, ...], Any], tuple[Array, Any]], size: int, weights: Any, rows: Rows
) -> tuple[Float[Array, "size features"], Any]:
    """Sums of a function of rows, and what else it returns by row.

    Args:
        function: function(weights, gathered, values) of a chunk gives (to_add, kept): rows that are added at
            `rows.target`, and a tree of rows that are returned.
        size: number of sums.
        weights: a tree of arrays.

    First and second derivatives are by reverse mode; there is no forward mode. `sum_rows` has all.
    """
    return _forward(function, size, weights, rows)


def sum_rows(function: Callable, size: int, weights: Any, rows: Rows) -> tuple[Array, Any]:
    """The same as `sum_chunks` by plain JAX, for all transforms, with whole arrays in memory."""
    added, kept = function(weights, _gather(rows.tables, rows), rows.values)
    return jax.ops.segment_sum(added, rows.target, size), kept


def _forward(function: Callable, size: int, weights: Any, rows: Rows) -> tuple[Array, Any]:
    tables = rows.tables

    def compute(chunk: Rows) -> tuple[Array, Any]:
        return function(weights, _gather(tables, chunk), chunk.values)

    def body(sums: Array, chunk: Rows) -> tuple[Array, Any]:
        added, kept = _unless_padding(chunk, compute)
        return sums.at[chunk.target].add(added, mode="drop"), kept

    chunks = _split(rows)
    shape = jax.eval_shape(compute, jax.tree.map(lambda x: x[0], chunks))[0]
    sums, kept = jax.lax.scan(body, jnp.zeros((size, *shape.shape[1:]), shape.dtype), chunks)
    return sums, _merge(kept)


def _remember(
    function: Callable, size: int, weights: Any, rows: Rows
) -> tuple[tuple[Array, Any], tuple[Any, Rows, tuple[()] | None]]:
    def value(x: Any) -> Any:
        return x.value

    def is_primal(x: Any) -> bool:
        return hasattr(x, "perturbed")

    trained = any(x.perturbed for x in jax.tree.leaves(weights, is_leaf=is_primal))
    weights, rows = (jax.tree.map(value, x, is_leaf=is_primal) for x in (weights, rows))
    # Whether gradients of the weights are wanted is part of the structure of the tree.
    return _forward(function, size, weights, rows), (weights, rows, () if trained else None)


def _backward(
    function: Callable, size: int, saved: tuple[Any, Rows, tuple[()] | None], slopes: tuple[Any, Any]
) -> tuple[Any, Rows]:
    weights, rows, trained = saved
    slopes = jax.tree.map(_instantiate, slopes, is_leaf=lambda x: isinstance(x, SymbolicZero))
    sum_slope, kept_slope = slopes
    tables = rows.tables

    def compute(given: tuple[Rows, Any]) -> tuple[Any, tuple[Array, ...], Any]:
        chunk, kept = given
        gathered = _gather(tables, chunk)
        added = sum_slope.at[chunk.target].get(mode="fill", fill_value=0)
        if trained is None:
            _, pull = jax.vjp(lambda g, v: function(weights, g, v), gathered, chunk.values)
            return (None, *pull((added, kept)))
        _, pull = jax.vjp(function, weights, gathered, chunk.values)
        return pull((added, kept))

    def body(sums: tuple[Any, tuple[Array, ...]], given: tuple[Rows, Any]) -> tuple[Any, Any]:
        chunk, _ = given
        of_weights, gathered, values = _unless_padding(chunk, compute, given)
        moved = tuple(
            total.at[index].add(g, mode="drop")
            for total, index, g in zip(sums[1], chunk.indices, gathered, strict=True)
        )
        return (jax.tree.map(jnp.add, sums[0], of_weights), moved), values

    zeros = None if trained is None else jax.tree.map(jnp.zeros_like, weights)
    start = (zeros, tuple(jnp.zeros_like(t) for t in tables))
    (of_weights, of_tables), values = jax.lax.scan(body, start, (_split(rows), _split_rows(kept_slope, rows)))
    if of_weights is None:
        of_weights = jax.tree.map(jnp.zeros_like, weights)
    none = tuple(None for _ in rows.indices)
    return of_weights, Rows(of_tables, none, _merge(values), None, None)  # pyright: ignore


sum_chunks.defvjp(_remember, _backward, symbolic_zeros=True)


def _instantiate(x: Any) -> Any:
    if not isinstance(x, SymbolicZero):
        return x
    missing: Any = x
    return jnp.zeros(missing.shape, missing.dtype)


def _gather(tables: tuple[Array, ...], chunk: Rows) -> tuple[Array, ...]:
    return tuple(t.at[i].get(mode="clip") for t, i in zip(tables, chunk.indices, strict=True))


def _unless_padding(chunk: Rows, compute: Callable, given: Any = None) -> Any:
    """The result for a chunk, zero if all of it is padding. `used` is what is left from the chunk on."""
    given = chunk if given is None else given
    shapes = jax.eval_shape(compute, given)

    def nothing(_: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(chunk.used > 0, compute, nothing, given)


def _split(rows: Rows) -> Rows:
    """Rows as chunks, without the tables, which all chunks share; `used` is counted from each chunk on."""
    size = chunk_size(len(rows.target))
    starts = jnp.arange(len(rows.target) // size, dtype=jnp.int32) * size
    indices, values, target = _split_rows((rows.indices, rows.values, rows.target), rows)
    return Rows((), indices, values, target, rows.used - starts)


def _split_rows(tree: Any, rows: Rows) -> Any:
    size = chunk_size(len(rows.target))
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def _merge(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


__all__ = ["Rows", "chunk_size", "sum_chunks", "sum_rows"]
