"""RecordBuffer: rows of a recording hook that wait on the device until the host fetches them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from alchemi_jax.hooks import HookContext, RecordingHook


_BYTES = 4 << 20
_LEAST, _MOST = 16, 1024


class RecordBuffer(eqx.Module):
    """`count` rows, oldest first; beyond them the contents mean nothing."""

    rows: PyTree[Array]
    count: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Number of rows that fit."""
        leaves = jax.tree.leaves(self.rows)
        return leaves[0].shape[0] if leaves else _MOST

    @property
    def full(self) -> Bool[Array, ""]:
        """Whether the next row needs the buffer to be drained first."""
        return self.count >= self.capacity


def allocate(hook: RecordingHook, ctx: HookContext, capacity: int | None = None) -> RecordBuffer:
    """An empty buffer for the rows that `hook.record(ctx)` makes: a few MiB of them."""
    row = jax.eval_shape(lambda: hook.record(ctx))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
    if capacity is None:
        capacity = min(max(_BYTES // max(size, 1), _LEAST), _MOST)
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)
    return RecordBuffer(rows, jnp.zeros((), jnp.int32))


def append(
    hook: RecordingHook, buffer: RecordBuffer, ctx: HookContext, due: Bool[Array, ""] | bool
) -> RecordBuffer:
    """The buffer with one row more, if it is due. The buffer must not be full.

    The row is made under a `cond` and always put in place: a row that is not due lies beyond `count`,
    and the buffer itself never passes through the `cond`, which would copy it.
    """

    def skip() -> Any:
        return jax.tree.map(lambda rows: jnp.zeros(rows.shape[1:], rows.dtype), buffer.rows)

    row = hook.record(ctx) if due is True else jax.lax.cond(due, lambda: hook.record(ctx), skip)
    rows = jax.tree.map(
        lambda rows, new: jax.lax.dynamic_update_index_in_dim(
            rows, jnp.asarray(new, rows.dtype), buffer.count, 0
        ),
        buffer.rows,
        row,
    )
    count = buffer.count + jnp.asarray(due, jnp.int32)
    return dataclasses.replace(buffer, rows=rows, count=count)


def grown(buffer: RecordBuffer, capacity: int) -> RecordBuffer:
    """The buffer with room for at least `capacity` rows."""
    more = capacity - buffer.capacity
    if more <= 0:
        return buffer
    rows = jax.tree.map(lambda r: jnp.pad(r, [(0, more)] + [(0, 0)] * (r.ndim - 1)), buffer.rows)
    return dataclasses.replace(buffer, rows=rows)
