"""RecordBuffer: rows of a recording hook that wait on the device until the host fetches them.

A row is packed into words of 32 bits, so that a step that records nothing only updates one small array in
place.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt32

from alchemi_jax.errors import (
    UserCodeError,
    check_same_structure,
    description,
    is_array,
    location,
    name_of,
    user_errors,
)
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import RecordingHook
from alchemi_jax.systems.levels import Data, unsafe_replace


_BYTES = 4 << 20
_LEAST, _MOST = 16, 1024


class RecordBuffer(eqx.Module):
    """`count` rows, oldest first; further contents have no meaning. `rows` gives the rows as recorded."""

    words: UInt32[Data, "rows words"]
    count: Int[Data, ""]
    layout: "Layout" = eqx.field(static=True)

    @property
    def capacity(self) -> int:
        """Number of rows that fit."""
        return self.words.shape[-2]

    def full(self, rows: int = 1) -> Bool[Array, ""]:
        """Whether there is no room for this many further rows."""
        return self.count > self.capacity - rows

    @property
    def overflow(self) -> Bool[Array, ""]:
        """Whether rows were lost because there was no room for them."""
        return self.count > self.capacity

    @property
    def rows(self) -> Any:
        """The results of `record`, each leaf with a leading axis [rows]; mapped buffers keep their axes."""
        return self.layout.unpack(self.words)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of the leaves of a row in its words."""

    tree: Any
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...]

    @classmethod
    def of(cls, row: Any) -> "Layout":
        """The layout of rows like this one."""
        leaves, tree = jax.tree.flatten(row)
        return cls(tree, tuple((tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves))

    def pack(self, row: Any) -> UInt32[Array, " words"]:
        """A row as words."""
        parts = [
            _to_words(jnp.asarray(leaf, dtype))
            for leaf, (_, dtype) in zip(jax.tree.leaves(row), self.leaves, strict=True)
        ]
        return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.uint32)

    def unpack(self, words: Any) -> Any:
        """Rows from words [..., words] of JAX or numpy; the axes of each leaf replace the last one."""
        out, first = [], 0
        for shape, dtype in self.leaves:
            n = int(np.prod(shape, dtype=int)) * _words_of(dtype)
            out.append(_from_words(words[..., first : first + n], shape, dtype))
            first += n
        return jax.tree.unflatten(self.tree, out)

    def like(self) -> Any:
        """A row of this layout, without values."""
        return jax.tree.unflatten(self.tree, [jax.ShapeDtypeStruct(*leaf) for leaf in self.leaves])

    @property
    def words(self) -> int:
        """Number of words of a row."""
        return sum(int(np.prod(shape, dtype=int)) * _words_of(dtype) for shape, dtype in self.leaves)


def _words_of(dtype: np.dtype) -> int:
    return max(dtype.itemsize // 4, 1)


def _to_words(leaf: Shaped[Array, "..."]) -> UInt32[Array, " words"]:
    flat = leaf.reshape(-1)
    if jnp.iscomplexobj(flat):
        flat = jnp.stack([flat.real, flat.imag], axis=-1).reshape(-1)
    size = flat.dtype.itemsize
    if flat.dtype == bool:
        return flat.astype(jnp.uint32)
    if size < 4:
        narrow = jax.lax.bitcast_convert_type(flat, jnp.uint8 if size == 1 else jnp.uint16)
        return narrow.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(flat, jnp.uint32).reshape(-1)


def _from_words(words: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    lead = words.shape[:-1]
    if isinstance(words, np.ndarray):
        if dtype.itemsize >= 4:
            return np.ascontiguousarray(words).view(dtype).reshape((*lead, *shape))
        if dtype.kind == "b":
            return (words != 0).reshape((*lead, *shape))
        return words.astype(f"u{dtype.itemsize}").view(dtype).reshape((*lead, *shape))
    if dtype.kind == "c":
        parts = _from_words(words, (-1, 2), np.dtype(f"f{dtype.itemsize // 2}"))
        return jax.lax.complex(parts[..., 0], parts[..., 1]).reshape((*lead, *shape))
    if dtype.kind == "b":
        return (words != 0).reshape((*lead, *shape))
    if dtype.itemsize < 4:
        narrow = words.astype(jnp.uint8 if dtype.itemsize == 1 else jnp.uint16)
        return jax.lax.bitcast_convert_type(narrow, dtype).reshape((*lead, *shape))
    groups = words if dtype.itemsize == 4 else words.reshape((*lead, -1, dtype.itemsize // 4))
    return jax.lax.bitcast_convert_type(groups, dtype).reshape((*lead, *shape))


def allocate(hook: RecordingHook, ctx: HookContext, capacity: int | None = None) -> RecordBuffer:
    """An empty buffer for the rows that `hook.record(ctx)` makes; by default of a few MiB."""
    layout = Layout.of(jax.eval_shape(lambda: _row(hook, ctx)))
    if capacity is None:
        capacity = min(max(_BYTES // max(4 * layout.words, 1), _LEAST), _MOST)
    words = jnp.zeros((capacity, layout.words), jnp.uint32)
    return RecordBuffer(words, jnp.zeros((), jnp.int32), layout)


def append(
    hook: RecordingHook, buffer: RecordBuffer, ctx: HookContext, due: Bool[Array, ""] | bool
) -> RecordBuffer:
    """The buffer with one more row, if it is due. If the buffer is full, the row is lost and `overflow` is
    set.

    The row is made inside a `cond` and always written: if it is not due, it is beyond `count`. The buffer
    does not pass through the `cond`, which would copy it.
    """

    def make() -> UInt32[Array, " words"]:
        function_name, layout = f"{name_of(hook)}.record", buffer.layout
        return layout.pack(
            check_same_structure(function_name, "row", _row(hook, ctx), layout.like(), type(hook).record)
        )

    def skip() -> UInt32[Array, " words"]:
        return jnp.zeros(buffer.layout.words, jnp.uint32)

    row = make() if due is True else jax.lax.cond(due, make, skip)
    words = jax.lax.dynamic_update_index_in_dim(buffer.words, row, buffer.count, 0)
    count = buffer.count + jnp.asarray(due, jnp.int32)
    return dataclasses.replace(buffer, words=words, count=count)


def _row(hook: RecordingHook, ctx: HookContext) -> Any:
    """The row that the hook records now, a pytree of arrays."""
    with user_errors(f"{name_of(hook)}.record", "hook"):
        row = hook.record(ctx)
    leaves = jax.tree_util.tree_leaves_with_path(row, is_leaf=lambda x: x is None)
    for path, leaf in leaves:
        if not is_array(leaf):
            raise UserCodeError(
                f"{name_of(hook)}.record returned row{jax.tree_util.keystr(path)} as {description(leaf)}: "
                f"a row is a pytree of arrays{location(type(hook).record)}."
            )
    return row


def emptied(buffers: Iterable[RecordBuffer]) -> tuple[RecordBuffer, ...]:
    """The buffers without rows."""
    return tuple(unsafe_replace(buffer, count=jnp.zeros((), jnp.int32)) for buffer in buffers)


def write_rows(hooks: Iterable[RecordingHook], buffers: Iterable[RecordBuffer], step: int) -> None:
    """Give the rows of fetched buffers to their hooks. Exceptions get a note with hook and step."""
    for hook, buffer in zip(hooks, buffers, strict=True):
        n = int(buffer.count)
        if n:
            rows = jax.tree.map(lambda x, n=n: x[:n], buffer.rows)
            when = f"writing rows up to step {step}"
            with user_errors(f"{name_of(hook)}.write", "hook"), note_errors(hook, when):
                hook.write(rows)


def grow(buffer: RecordBuffer, capacity: int) -> RecordBuffer:
    """The buffer with room for at least `capacity` rows."""
    more = capacity - buffer.capacity
    if more <= 0:
        return buffer
    return dataclasses.replace(buffer, words=jnp.pad(buffer.words, [(0, more), (0, 0)]))


__all__ = ["Layout", "RecordBuffer", "allocate", "append", "emptied", "grow", "write_rows"]
