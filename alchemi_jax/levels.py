"""Per atom, per system or shared: the level that a field declares, and what follows from it.

A level is never guessed from a shape, because a batch of one-atom systems has as many atoms as
systems. `Batch` and the states of the algorithms declare their fields with `per_atom()`,
`per_system()` or, for anything else, a plain field.
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool


Level = Literal["atom", "system", "shared"]
if TYPE_CHECKING:
    Data = jax.Array
else:
    # On the host a batch holds numpy arrays; for the type checker they are alike.
    Data = jax.Array | np.ndarray
_M = TypeVar("_M")


def per_atom(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `atoms` axis; `fill` stands in padding."""
    return eqx.field(metadata={"level": "atom", "fill": fill}, **kwargs)


def per_system(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `systems` axis; `fill` stands in padding."""
    return eqx.field(metadata={"level": "system", "fill": fill}, **kwargs)


def level_fields(module: Any) -> Iterator[tuple[str, Level]]:
    """Name and level of every array field of a Module, in order of declaration."""
    for f in dataclasses.fields(module):
        if not f.metadata.get("static", False):
            yield f.name, f.metadata.get("level", "shared")


def swapped(module: _M, **fields: Any) -> _M:
    """`dataclasses.replace` for what is known to fit: without `__init__`, converters and checks, which
    take a tenth of a millisecond wherever a compiled loop has just used the caches."""
    new = object.__new__(type(module))
    new.__dict__.update(module.__dict__)
    new.__dict__.update(fields)
    return new


def _where(mask: Array, new: Any, old: Any) -> Any:
    if new is old:
        return old
    return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(new) - 1)), new, old)


def select(atom_mask: Bool[Array, " atoms"], system_mask: Bool[Array, " systems"], new: _M, old: _M) -> _M:
    """`new` where the mask of a field's level holds, `old` elsewhere; shared fields come from `new`.

    Both are Modules of one type whose fields declare levels, None, or tuples of these. Fields that are
    the same object in both are passed through, so that a freeze costs only what changed.
    """
    if new is None or old is None:
        return new
    if isinstance(new, tuple):
        pairs = zip(new, old, strict=True)  # pyright: ignore
        return tuple(select(atom_mask, system_mask, a, b) for a, b in pairs)  # pyright: ignore
    masks = {"atom": atom_mask, "system": system_mask}
    changed = {}
    for name, level in level_fields(new):
        a, b = getattr(new, name), getattr(old, name)
        if a is b:
            continue
        if level == "shared":
            changed[name] = a
        else:
            mask = masks[level]
            changed[name] = jax.tree.map(lambda x, y, mask=mask: _where(mask, x, y), a, b)
    return dataclasses.replace(new, **changed) if changed else new  # pyright: ignore
