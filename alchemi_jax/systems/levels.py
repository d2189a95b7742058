"""Per atom, per system or shared: the level that a field declares, and functions that use it.

A level is never guessed from a shape: in a batch of one-atom systems there are as many atoms as systems.
`Batch` and the states of the algorithms declare their fields with `per_atom()`, `per_system()` or, for
anything else, a plain field.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alchemi_jax.errors import UserCodeError, description
from alchemi_jax.systems.metadata import EMPTY


Level = Literal["atom", "system", "shared"]
if TYPE_CHECKING:
    Data = jax.Array
else:
    # On the host the arrays of a module may be numpy; the type checker need not know.
    Data = jax.Array | np.ndarray
_M = TypeVar("_M")


def per_atom(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `atoms` axis; padding has the value `fill`."""
    return eqx.field(metadata={"level": "atom", "fill": fill}, **kwargs)


def per_system(fill: Any = 0, **kwargs: Any) -> Any:
    """A field with a leading `systems` axis; padding has the value `fill`."""
    return eqx.field(metadata={"level": "system", "fill": fill}, **kwargs)


def level_fields(module: Any) -> tuple[tuple[str, Level], ...]:
    """Name and level of every array field of a Module or its class, in order of declaration."""
    return _levels(module if isinstance(module, type) else type(module))


def without_arrays(**kwargs: Any) -> Any:
    """A field that is neither an array nor static data, such as names. It is a pytree node without leaves."""
    return eqx.field(metadata={"level": None}, **kwargs)


@functools.cache
def _levels(kind: type) -> tuple[tuple[str, Level], ...]:
    found = [f for f in dataclasses.fields(kind) if not f.metadata.get("static", False)]
    levels = [(f.name, f.metadata.get("level", "shared")) for f in found]
    return tuple((name, level) for name, level in levels if level is not None)


class PerSystem(eqx.Module):
    """An array, or a tree of arrays, with one row per system: for memories of hooks."""

    value: Any = per_system()


class PerAtom(eqx.Module):
    """An array, or a tree of arrays, with one row per atom: for memories of hooks."""

    value: Any = per_atom()


def map_by_level(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` of function(level, leaf, ...) over a tree, with the level that each leaf has.

    Fields of Modules have the level that they declare. The function descends into tuples, lists, dictionaries
    and fields that declare none; a leaf without a level is "shared". Shapes do not matter.
    """
    if isinstance(tree, eqx.Module):
        changed = {}
        for name, level in level_fields(tree):
            values = [getattr(t, name) for t in (tree, *others)]
            if level == "shared":
                changed[name] = map_by_level(function, *values)
            else:
                changed[name] = jax.tree.map(functools.partial(function, level), *values)
        return unsafe_replace(tree, **changed)
    if isinstance(tree, tuple | list):
        parts = [map_by_level(function, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if isinstance(tree, dict):
        return {key: map_by_level(function, value, *(o[key] for o in others)) for key, value in tree.items()}
    return jax.tree.map(functools.partial(function, "shared"), tree, *others)


def check_levels(who: str, tree: Any, rows: Mapping[Level, int], at: str = "") -> None:
    """Check that fields with a row per system or per atom have the right number of rows.

    Args:
        who: name of the function that made the tree, for the message.
        rows: length of each level.
        at: file and line of that function, the end of the message.

    Raises:
        UserCodeError: naming the first field with another number of rows.
    """
    if isinstance(tree, eqx.Module):
        for name, level in level_fields(tree):
            value = getattr(tree, name)
            if level == "shared":
                check_levels(who, value, rows, at)
                continue
            for leaf in jax.tree.leaves(value):
                if jnp.shape(leaf)[:1] != (rows[level],):
                    raise UserCodeError(
                        f"{who} made {type(tree).__name__}.{name} {description(leaf)}; declared "
                        f"per_{level}, it must begin with {rows[level]} rows, one per {level}{at}."
                    )
    elif isinstance(tree, tuple | list | dict):
        for part in tree.values() if isinstance(tree, dict) else tree:
            check_levels(who, part, rows, at)


def atom_rows(
    first_atom: Int[np.ndarray, " systems"], counts: Int[np.ndarray, " systems"]
) -> Int[np.ndarray, " atoms"]:
    """Rows of the atoms of some systems, one system after another, on the host.

    Args:
        first_atom, counts: [systems], row of the first atom of each system, and its number of atoms.
    """
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first_atom, counts) + within


def unsafe_replace(module: _M, **fields: Any) -> _M:
    """`dataclasses.replace` without `__init__`, converters and checks, to save time. The values must be
    valid."""
    if fields.get("meta", EMPTY) is None:
        # All batches have the same tree structure, with or without names.
        fields["meta"] = EMPTY
    return unsafe_make(type(module), {**module.__dict__, **fields})


def unsafe_make(kind: type[_M], fields: dict[str, Any]) -> _M:
    """A Module from all its fields, without `__init__`, converters and checks. The values must be valid."""
    new = object.__new__(kind)
    new.__dict__.update(fields)
    return new


def _where(mask: Bool[Array, " rows"], new: Any, old: Any) -> Any:
    if new is old:
        return old
    return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(new) - 1)), new, old)


def select(atom_mask: Bool[Array, " atoms"], system_mask: Bool[Array, " systems"], new: _M, old: _M) -> _M:
    """`new` where the mask of the level of a field is true, `old` elsewhere; shared fields come from `new`.

    Both are Modules of one type with fields that declare levels, or None, or tuples of these. A field that is
    the same object in both is not touched, so only changed fields cost time.
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


__all__ = [
    "Data",
    "Level",
    "PerAtom",
    "PerSystem",
    "atom_rows",
    "check_levels",
    "level_fields",
    "map_by_level",
    "per_atom",
    "per_system",
    "select",
    "unsafe_make",
    "unsafe_replace",
    "without_arrays",
]
