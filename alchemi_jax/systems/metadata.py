"""Names, `info` and other data of systems that are not arrays, and how they stay with a batch on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class SystemMeta:
    """The data of a system that are not arrays.

    Attributes:
        name: used in errors and warnings.
        info: any Python values; `to_ase` returns them.
        constraints: ASE constraints that are not applied; `to_ase` returns them.
        reason: why its last run failed or was stopped: "energy is not finite".
    """

    name: str
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constraints: tuple = ()
    reason: str = ""


class Metadata(Sequence[SystemMeta]):
    """One SystemMeta per system, in order; empty if they are not known.

    It is a pytree node without leaves and without static data. `dataclasses.replace` keeps it; functions that
    flatten and unflatten a batch (jit, vmap, `jax.tree.map`, `jax.device_put`) return an empty one. So all
    batches of the same shapes have the same tree structure: names never cause a compilation, and compiled
    code never returns the names of the batch with which it was traced.

    It still knows whether there were constraints that are not applied, `constrained`, as static data of the
    node, so that engines refuse such a batch after jit and vmap, too.

    Args:
        entries: one per system.
        lost: whether systems have such constraints that no entry names.

    Attributes:
        constrained: whether any system has constraints that are not applied.
    """

    __slots__ = ("_entries", "_lost", "constrained")

    def __init__(self, entries: Iterable[SystemMeta] = (), lost: bool = False):
        self._entries, self._lost = tuple(entries), lost
        # Looked at whenever a batch is flattened.
        self.constrained = lost or any(entry.constraints for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SystemMeta]:
        return iter(self._entries)

    @overload
    def __getitem__(self, key: int) -> SystemMeta: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[SystemMeta, ...]: ...
    def __getitem__(self, key: Any) -> Any:
        return self._entries[key]

    def __repr__(self) -> str:
        return f"Metadata({list(self._entries)!r})"

    def of_rows(self, rows: Int[np.ndarray, " some"]) -> Metadata:
        """The entries of some rows; empty if one of them is not known."""
        known = bool(self) and np.max(rows, initial=-1) < len(self)
        if not known:
            return _empty(self.constrained)
        return Metadata((self[i] for i in rows), self._lost)

    def filled(self, n: int) -> Metadata:
        """The entries of `n` systems; those that are not known are named by their row."""
        more = (SystemMeta(f"system {i}") for i in range(len(self), n))
        return Metadata([*self[:n], *more], self._lost)


EMPTY = Metadata()
_EMPTY_CONSTRAINED = Metadata(lost=True)


def _empty(constrained: bool) -> Metadata:
    return _EMPTY_CONSTRAINED if constrained else EMPTY


jax.tree_util.register_pytree_node(
    Metadata, lambda meta: ((), meta.constrained), lambda constrained, _: _empty(constrained)
)


def as_metadata(meta: Any) -> Metadata:
    """Metadata from any iterable of SystemMeta; None gives an empty one."""
    if isinstance(meta, Metadata):
        return meta
    return EMPTY if meta is None else Metadata(meta)


__all__ = ["EMPTY", "Metadata", "SystemMeta", "as_metadata"]
