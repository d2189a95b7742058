"""Per atom, per system or shared: the level that a field declares, and what follows from it.

A level is never guessed from a shape, because a batch of one-atom systems has as many atoms as
systems. `Batch` and the states of the algorithms declare their fields with `per_atom()`,
`per_system()` or, for anything else, a plain field.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from alchemi_jax.errors import UserCodeError, description
from alchemi_jax.systems.metadata import EMPTY


Level = Literal["atom", "system", "shared"]
if TYPE_CHECKING:
    Data = jax.Array
else:
    # On the host a module may hold numpy arrays; for the type checker they are the same.
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
    """A field that holds no array and yet is no static data, such as names: a pytree node without leaves."""
    return eqx.field(metadata={"level": None}, **kwargs)


@functools.cache
def _levels(kind: type) -> tuple[tuple[str, Level], ...]:
    found = [f for f in dataclasses.fields(kind) if not f.metadata.get("static", False)]
    levels = [(f.name, f.metadata.get("level", "shared")) for f in found]
    return tuple((name, level) for name, level in levels if level is not None)


class PerSystem(eqx.Module):
    """An array, or a tree of arrays, with one row per system: a memory of a hook that is nothing else."""

    value: Any = per_system()


class PerAtom(eqx.Module):
    """An array, or a tree of arrays, with one row per atom."""

    value: Any = per_atom()


def map_by_level(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`jax.tree.map` of function(level, leaf, ...) over a tree, with the level that each leaf has.

    Fields of Modules have the level that they declare. Tuples, lists, dictionaries and fields that declare
    none are looked into; a leaf without a level is "shared". Shapes are not asked.
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
    """Whether what declares a row per system or per atom has that many rows.

    Args:
        who: the function that made the tree, as the sentence calls it.
        rows: length of each level.
        at: where that function is, as the sentence ends.

    Raises:
        UserCodeError: naming the first field that has not.
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

    Both are Modules of one type with fields that declare levels, None, or tuples of these. Fields that are
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
