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
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[SystemMeta] = ()):
        self._entries = tuple(entries)

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
        return Metadata(self[i] for i in rows) if known else EMPTY

    def filled(self, n: int) -> Metadata:
        """The entries of `n` systems; those that are not known are named by their row."""
        return Metadata([*self[:n], *(SystemMeta(f"system {i}") for i in range(len(self), n))])


EMPTY = Metadata()

jax.tree_util.register_pytree_node(Metadata, lambda meta: ((), None), lambda aux, children: EMPTY)


def as_metadata(meta: Any) -> Metadata:
    """Metadata from any iterable of SystemMeta; None gives an empty one."""
    if isinstance(meta, Metadata):
        return meta
    return EMPTY if meta is None else Metadata(meta)


__all__ = ["EMPTY", "Metadata", "SystemMeta", "as_metadata"]
