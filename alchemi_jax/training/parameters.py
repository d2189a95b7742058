"""Which leaves of a model are trained: a filter by paths or by a function."""

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.errors import description, name_of
from alchemi_jax.models.base import AbstractModel


#: A function of path and leaf, or paths.
Filter = Callable[[str, Any], bool] | tuple[str, ...]


def as_filter(name: str) -> Callable[[Any], Any]:
    """A converter to a filter: None, a function `(path, leaf) -> bool`, a path, or a list of paths."""

    def convert(value: Any) -> Any:
        if value is None or callable(value):
            return value
        paths = (
            (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else None
        )
        if paths is None or not all(isinstance(path, str) for path in paths):
            raise TypeError(
                f"{name} must be a path of the model, a list of paths, or a function of path and leaf, not "
                f"{description(value)}."
            )
        return paths

    return convert


def is_trainable(leaf: Any) -> bool:
    """Whether a leaf is an array of floats."""
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def paths_of(model: Any) -> dict[str, Any]:
    """The leaves of a model that can be trained, by path, such as "variables.params.Dense_0.kernel"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(model)
    named = ((jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in flat)
    return {path: leaf for path, leaf in named if is_trainable(leaf)}


def choose(model: Any, trainable: Any, frozen: Any) -> Any:
    """A tree like the model, true at the leaves that are trained."""
    flat, tree = jax.tree_util.tree_flatten_with_path(model)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]
    left = tuple(_untrained(model)) if trainable is None else ()
    chosen = [
        is_trainable(leaf)
        and (not _takes(left, name, leaf) if trainable is None else _takes(trainable, name, leaf))
        and not (frozen is not None and _takes(frozen, name, leaf))
        for name, (_, leaf) in zip(names, flat, strict=True)
    ]
    return jax.tree.unflatten(tree, chosen)


def _untrained(model: Any, at: str = "") -> Iterator[str]:
    """Paths that the model, and models in it, name in `untrained`."""
    yield from (f"{at}{name}" for name in getattr(model, "untrained", ()))

    def inside(node: Any) -> bool:
        return node is not model and isinstance(node, AbstractModel)

    for path, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=inside)[0]:
        if inside(node):
            yield from _untrained(node, f"{at}{jax.tree_util.keystr(path, simple=True, separator='.')}.")


def check_filters(model: Any, trainable: Any, frozen: Any) -> None:
    """Raises ValueError for a path that no leaf has, or if nothing is left to train."""
    known = paths_of(model)
    if not known:
        raise ValueError(f"there is nothing to train: {name_of(model)} has no arrays of floats.")
    some = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
    for name, given in (("trainable", trainable), ("frozen", frozen)):
        for path in given if isinstance(given, tuple) else ():
            if not any(_takes((path,), other, None) for other in known):
                raise ValueError(f"{name} {path!r} is no path of {name_of(model)}, whose floats are {some}.")
    if not any(jax.tree.leaves(choose(model, trainable, frozen))):
        raise ValueError(
            f"there is nothing to train: of the floats of {name_of(model)}, {some}, all are frozen."
        )


def _takes(given: Any, path: str, leaf: Any) -> bool:
    if callable(given):
        return bool(given(path, leaf))
    return any(fnmatch.fnmatchcase(path, p) or fnmatch.fnmatchcase(path, f"{p}.*") for p in given)


__all__ = ["Filter", "as_filter", "check_filters", "choose", "is_trainable", "paths_of"]
