"""A tree partitioned once into its arrays and the rest, which is one object for all trees where it is equal.

`eqx.filter_jit` partitions at every call, and compares what is static with what was compiled: half a ms
for an engine with a few hooks, as long as two steps of a small batch. Here equal rests are the same object,
so that comparing them is cheap.
"""

import functools
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax


_T = TypeVar("_T")


class _ByIdentity:
    """A value that has no hash, as static data: equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Rest:
    """All of a tree but its arrays; equal where nothing would have to be compiled again."""

    def __init__(self, leaves: tuple, treedef: Any, paths: tuple):
        self.leaves, self.treedef, self.paths = leaves, treedef, paths
        # 1, 1.0 and True are equal, but do not compile to the same.
        self._key = (tuple((type(x), x) for x in leaves), treedef)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Rest) or self._hash != other._hash:
            return False
        return self._key == other._key

    def __repr__(self) -> str:
        return f"{self.treedef} with {[x for x in self.leaves if x is not None]}"

    def __reduce__(self) -> Any:
        # Hashes differ from process to process.
        return _Rest, (self.leaves, self.treedef, self.paths)


@functools.lru_cache(maxsize=256)
def _one(rest: _Rest) -> _Rest:
    """The same object for all that are equal."""
    return rest


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


@jax.tree_util.register_pytree_with_keys_class
class Partitioned(Generic[_T]):
    """A tree as a pytree of its arrays alone; all else in it is static, hashable or not.

    JAX may fill the places of the arrays with anything, as for any pytree. `combine()` gives the tree.
    """

    def __init__(self, tree: _T):
        found, treedef = jax.tree_util.tree_flatten_with_path(tree)
        self._arrays = [x for _, x in found if eqx.is_array(x)]
        paths = tuple(_Path(path) for path, x in found if eqx.is_array(x))
        rest = (None if eqx.is_array(x) else x if _is_hashable(x) else _ByIdentity(x) for _, x in found)
        self._rest = _one(_Rest(tuple(rest), treedef, paths))
        self._tree: Any = tree

    def combine(self) -> _T:
        """The tree again."""
        if self._tree is None:
            arrays = iter(self._arrays)
            leaves = [next(arrays) if x is None else x for x in self._rest.leaves]
            leaves = [x.value if isinstance(x, _ByIdentity) else x for x in leaves]
            self._tree = jax.tree.unflatten(self._rest.treedef, leaves)
        return self._tree

    def __repr__(self) -> str:
        return repr(self.combine())

    def __reduce__(self) -> Any:
        return Partitioned, (self.combine(),)

    def tree_flatten(self) -> tuple[Any, Any]:
        """For JAX."""
        return self._arrays, self._rest

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """For JAX."""
        return list(zip(self._rest.paths, self._arrays, strict=True)), self._rest

    @classmethod
    def tree_unflatten(cls, rest: _Rest, arrays: Any) -> "Partitioned":
        """For JAX."""
        new = object.__new__(cls)
        new._arrays, new._rest, new._tree = list(arrays), rest, None
        return new


class _Path(tuple):
    """The path of an array in the tree, as one key."""

    __slots__ = ()

    def __str__(self) -> str:
        return jax.tree_util.keystr(tuple(self))


__all__ = ["Partitioned"]
