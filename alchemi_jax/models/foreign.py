"""Models of other packages: their static parts, and settings of JAX while their code is traced."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array


#: Settings that packages change for the whole process when they are imported.
_NORMALIZATIONS = ("path_normalization", "gradient_normalization")
_KEPT = ("jax_default_matmul_precision", "jax_enable_x64", "jax_numpy_rank_promotion", "jax_debug_nans")


class Structure:
    """A pytree without its arrays, as a static field: equal if structure and other leaves are.

    Static fields of other packages may have no hash, so that of this is only the hash of the shapes.
    """

    def __init__(self, tree: Any, name: str, shapes: tuple):
        self.tree, self.name, self.shapes = tree, name, shapes

    @classmethod
    def split(cls, model: Any, name: str) -> tuple[list[Array], "Structure"]:
        """The arrays of a model, and the rest.

        Args:
            name: of the model, for its repr.
        """
        arrays, rest = eqx.partition(model, eqx.is_array)
        leaves, tree = jax.tree.flatten(arrays)
        shapes = tuple(leaf.shape for leaf in leaves)
        return leaves, cls((tree, rest), name, shapes)

    def join(self, leaves: Sequence[Array]) -> Any:
        """The model with these arrays."""
        tree, rest = self.tree
        return eqx.combine(jax.tree.unflatten(tree, list(leaves)), rest)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Structure) or (self.name, self.shapes) != (other.name, other.shapes):
            return False
        try:
            return bool(self.tree[0] == other.tree[0] and eqx.tree_equal(self.tree[1], other.tree[1]))
        except (TypeError, ValueError):
            return False

    def __hash__(self) -> int:
        return hash((self.name, self.shapes))

    def __repr__(self) -> str:
        return self.name


class Opaque:
    """An object as a static field, equal to others of the same content.

    Args:
        value: the object. name: for its repr. digest: of its content.
    """

    def __init__(self, value: Any, name: str, digest: str):
        self.value, self.name, self.digest = value, name, digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return self.name


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Around imports and calls of other packages: products in full precision, shapes that broadcast, and
    settings of the process, of JAX and e3nn_jax, as they were before."""
    before = {name: getattr(jax.config, name) for name in _KEPT}
    e3nn: Any = sys.modules.get("e3nn_jax")
    normalization = {} if e3nn is None else {name: e3nn.config(name) for name in _NORMALIZATIONS}
    try:
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        for name, value in normalization.items():
            e3nn.config(name, value)
        # Behind the contexts, which hide the settings of the process.
        for name, value in before.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)


__all__ = ["Opaque", "Structure", "foreign_code"]
