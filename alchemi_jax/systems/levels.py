"""Per atom, per system or shared: the level that a field declares, and what follows from it.

A level is never guessed from a shape, because a batch of one-atom systems has as many atoms as
systems. `Batch` and the states of the algorithms declare their fields with `per_atom()`,
`per_system()` or, for anything else, a plain field.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from alchemi_jax.systems.metadata import EMPTY


Level = Literal["atom", "system", "shared"]
if TYPE_CHECKING:
    Data = jax.Array
else:
    # On the host a module may hold numpy arrays; for the type checker they are the same.
    Data = jax.Array | np.ndarray
_M = TypeVar("_M")


def per_atom(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `atoms` axis; `fill` stands in padding."""
    return eqx.field(metadata={"level": "atom", "fill": fill}, **kwargs)


def per_system(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `systems` axis; `fill` stands in padding."""
    return eqx.field(metadata={"level": "system", "fill": fill}, **kwargs)


def level_fields(module: Any) -> tuple[tuple[str, Level], ...]:
    """Name and level of every array field of a Module or its class, in order of declaration."""
    return _levels(module if isinstance(module, type) else type(module))


def without_arrays(**kwargs: Any) -> Any:
    """A field that holds no array and yet is no static data, such as names: a pytree node without leaves."""
    return eqx.field(metadata={"level": None}, **kwargs)


@functools.cache
def _levels(kind: type) -> tuple[tuple[str, Level], ...]:
    found = [f for f in dataclasses.fields(kind) if not f.metadata.get("static", False)]
    levels = [(f.name, f.metadata.get("level", "shared")) for f in found]
    return tuple((name, level) for name, level in levels if level is not None)


def declares_levels(thing: Any) -> bool:
    """Whether it is a Module that says of any of its fields whose rows it has."""
    return isinstance(thing, eqx.Module) and any(level != "shared" for _, level in level_fields(thing))


def atom_rows(first_atom: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[atoms] Rows of the atoms of some systems, one system after another, on the host.

    Args:
        first_atom, counts: [systems], where each begins, and how many atoms it has.
    """
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first_atom, counts) + within


def unsafe_replace(module: _M, **fields: Any) -> _M:
    """`dataclasses.replace` for what is known to fit: without `__init__`, converters and checks, which
    take a tenth of a millisecond wherever a compiled loop has just used the caches."""
    if fields.get("meta", EMPTY) is None:
        # One tree structure for all batches, whether names are known or not.
        fields["meta"] = EMPTY
    return unsafe_make(type(module), {**module.__dict__, **fields})


def unsafe_make(kind: type[_M], fields: dict[str, Any]) -> _M:
    """A Module of fields that are known to fit, all of them: without `__init__`, converters and checks."""
    new = object.__new__(kind)
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
