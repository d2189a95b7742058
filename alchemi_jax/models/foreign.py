"""Models of other packages: their static parts, and settings of JAX while their code is traced."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array


#: Of e3nn_jax, as it begins; the networks of mlip 0.1 change them for the whole process when they are called.
_NORMALIZATIONS = {"path_normalization": "element", "gradient_normalization": "path"}
#: Settings that packages change for the whole process when they are imported.
_KEPT = ("jax_default_matmul_precision", "jax_enable_x64", "jax_numpy_rank_promotion", "jax_debug_nans")


class Opaque:
    """An object as a static field, equal to others of the same content.

    Objects of other packages may have no hash, and may differ from themselves when they are read again.

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


def split(model: Any, name: str, digest: str) -> tuple[list[Array], Opaque]:
    """The arrays of a pytree, and all else of it as one static value.

    Args:
        name: for the repr. digest: of the content of its file.
    """
    arrays, rest = eqx.partition(model, eqx.is_array)
    leaves, tree = jax.tree.flatten(arrays)
    return leaves, Opaque((tree, rest), name, digest)


def join(rest: Opaque, leaves: Sequence[Array]) -> Any:
    """The pytree that was split, with these arrays."""
    tree, other = rest.value
    return eqx.combine(jax.tree.unflatten(tree, list(leaves)), other)


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Around imports and calls of other packages: products in full precision, shapes that broadcast, the
    normalizations with which e3nn_jax begins; and afterwards settings of the process as they were."""
    before = {name: getattr(jax.config, name) for name in _KEPT}
    e3nn = sys.modules.get("e3nn_jax")
    normalizations = {name: _normalization(name) for name in _NORMALIZATIONS} if e3nn else _NORMALIZATIONS
    try:
        for name, value in _NORMALIZATIONS.items():
            _normalization(name, value)
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        for name, value in normalizations.items():
            _normalization(name, value)
        # Behind the contexts, which hide the settings of the process.
        for name, value in before.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)


def _normalization(name: str, value: str | None = None) -> Any:
    """A setting of e3nn_jax, or, with a value, set it; nothing if e3nn_jax is not imported."""
    e3nn: Any = sys.modules.get("e3nn_jax")
    return None if e3nn is None else e3nn.config(name, value)


__all__ = ["Opaque", "foreign_code", "join", "split"]
