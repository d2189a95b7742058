"""An engine partitioned once into its arrays and the rest, for many calls of compiled code.

`eqx.filter_jit` does this at every call, and compares what is static with what was compiled: half a ms
for an engine with a few hooks, as long as two steps of a small batch. Here the rest is one object,
the same for equal engines, which is compared by being the same.
"""

import functools
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax


_T = TypeVar("_T")


class _Rest:
    """All of a tree but its arrays; equal where nothing would have to be compiled again."""

    def __init__(self, leaves: tuple, treedef: Any):
        self.leaves, self.treedef = leaves, treedef
        self._hash = hash((leaves, treedef))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, _Rest) or self._hash != other._hash:
            return False
        return self.leaves == other.leaves and self.treedef == other.treedef


@functools.lru_cache(maxsize=256)
def _one(rest: _Rest) -> _Rest:
    """The same object for all that are equal."""
    return rest


@jax.tree_util.register_pytree_node_class
class Partitioned(Generic[_T]):
    """A tree as a pytree of its arrays alone; `whole()` puts it together, inside a jit or outside."""

    def __init__(self, tree: _T):
        leaves, treedef = jax.tree.flatten(tree)
        self._arrays = [x for x in leaves if eqx.is_array(x)]
        self._rest = _one(_Rest(tuple(None if eqx.is_array(x) else x for x in leaves), treedef))

    def combine(self) -> _T:
        """The tree again."""
        arrays = iter(self._arrays)
        leaves = [next(arrays) if x is None else x for x in self._rest.leaves]
        return jax.tree.unflatten(self._rest.treedef, leaves)

    def tree_flatten(self) -> tuple[Any, _Rest]:
        """For JAX."""
        return self._arrays, self._rest

    @classmethod
    def tree_unflatten(cls, rest: _Rest, arrays: Any) -> "Partitioned":
        """For JAX."""
        new = object.__new__(cls)
        new._arrays, new._rest = arrays, rest
        return new
