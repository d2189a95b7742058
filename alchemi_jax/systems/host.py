"""HostBatch: many systems as numpy arrays without padding; System: one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import Any, overload

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Shaped

from alchemi_jax.html import table
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.capacity import float_dtype
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.levels import atom_rows, level_fields, unsafe_make
from alchemi_jax.systems.metadata import Metadata, as_metadata
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.systems.packing import pack, unpack
from alchemi_jax.systems.viewer import draw_structures
from alchemi_jax.transforms import is_traced


#: Number of systems of a batch that are shown in a notebook.
_SHOWN = 10
#: Fields that say where atoms are in the arrays; they have no meaning for a single system.
_PLACES = ("batch_idx", "first_atom", "atoms_per_system")


class System:
    """One system of a batch, read-only.

    Every field and extra of the batch is an attribute, without the axis of systems: `positions` and `forces`
    are [atoms, 3], `cell` is [3, 3], `energy`, `outcome`, `steps_taken` are numbers. `system["tags"]` does
    the same for names that are not Python names. Arrays are views of the batch.

    Attributes:
        name: name in errors and warnings.
        info: Python values that belong to the system.
        constraints: ASE constraints that are not applied.
    """

    __slots__ = ("_host", "_row")

    def __init__(self, host: HostBatch, row: int):
        self._host, self._row = host, row

    def __len__(self) -> int:
        return int(self._host.atoms_per_system[self._row])

    @property
    def name(self) -> str:
        """The name of the system in errors and warnings."""
        return self._host.name_of(self._row)

    @property
    def info(self) -> Mapping[str, Any]:
        """Python values that belong to the system."""
        return self._host.meta[self._row].info if self._host.meta else {}

    @property
    def constraints(self) -> tuple:
        """ASE constraints that are not applied."""
        return self._host.meta[self._row].constraints if self._host.meta else ()

    @property
    def outcome_text(self) -> str:
        """How the run of the system ended, such as "failed: its energy is not finite"."""
        return self._host.outcome_text(self._row)

    @property
    def atom_extras(self) -> dict[str, Shaped[np.ndarray, "atoms ..."]]:
        """Extras per atom, by name."""
        return {name: self._cut("atom", values) for name, values in self._host.atom_extras.items()}

    @property
    def system_extras(self) -> dict[str, Any]:
        """Extras of the system, by name: numbers or arrays."""
        return {name: self._cut("system", values) for name, values in self._host.system_extras.items()}

    def _cut(self, level: str, values: Shaped[np.ndarray, "rows *dims"]) -> Any:
        """The part of an array that belongs to the system."""
        if level == "system":
            return values[self._row]
        first = int(self._host.first_atom[self._row])
        return values[first : first + len(self)]

    def __getitem__(self, key: str) -> Any:
        return self._cut(self._host.level(key), self._host.field(key))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _PLACES or name not in self._host.keys():  # noqa: SIM118
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        return self[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(k for k in self._host.keys() if k not in _PLACES)]  # noqa: SIM118

    def to_data(self) -> AtomicData:
        """The system as AtomicData, which checks it."""
        return unpack(self._host, self._row)

    def to_ase(self) -> Atoms:
        """The system as ase.Atoms, with results in a SinglePointCalculator."""
        return self.to_data().to_ase()

    def __repr__(self) -> str:
        return f"System({self.name!r}, id {self.system_id}: {len(self)} atoms, {self.outcome_text})"


class HostBatch(AbstractBatch[np.ndarray]):
    """Many systems as numpy arrays without padding, with names and `info`.

    Host hooks, sinks and trajectories use it. Fields and units are those of `Batch`.

    `len(host)` is the number of systems; `for system in host` and `host[3]` give one of them, a `System`;
    `host[mask]`, `host[[1, 4]]` and `host[2:5]` give a HostBatch; `host["energy"]` is a field or extra.
    `Batch.from_host(host)` copies it to the device.
    """

    # -- making ----------------------------------------------------------------------------------

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], meta: Metadata | None = None) -> HostBatch:
        """A HostBatch from arrays without padding: all fields except `batch_idx` and `first_atom`, which are
        computed."""
        counts = np.asarray(fields["atoms_per_system"], np.int32)
        derived = {
            "batch_idx": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            "first_atom": np.cumsum(counts, dtype=np.int32) - counts,
        }
        own = {name: derived[name] if name in derived else fields[name] for name, _ in level_fields(cls)}
        own = jax.tree.map(np.asarray, own)
        return cls(**own, largest=int(counts.max(initial=1)), meta=as_metadata(meta))

    @classmethod
    def from_data_list(
        cls, data: Sequence[AtomicData | System], dtype: Any = None, extras: Collection[str] | None = None
    ) -> HostBatch:
        """A HostBatch of AtomicData, one per system; arguments as in `Batch.from_data_list`."""
        data = list(data)
        if not data:
            raise ValueError("A batch needs at least one system, the list is empty.")
        return cls.from_fields(*pack(data, float_dtype(dtype), extras))

    @classmethod
    def concatenate(cls, hosts: Sequence[HostBatch]) -> HostBatch:
        """The systems of several batches in one, with all their fields.

        Raises:
            ValueError: if they have different dtypes or extras.
        """
        hosts = list(hosts)
        if not hosts:
            raise ValueError("concatenate needs at least one batch.")
        if len({(h.dtype, tuple(h.keys())) for h in hosts}) > 1:
            raise ValueError("concatenate takes batches of one dtype with the same extras.")
        fields = {
            name: jax.tree.map(lambda *x: np.concatenate(x), *(getattr(h, name) for h in hosts))
            for name, _ in level_fields(cls)
        }
        named = any(h.meta for h in hosts)
        meta = Metadata(
            (m for h in hosts for m in h.meta.filled(len(h))) if named else (),
            lost=any(h.meta.constrained and not h.meta for h in hosts),
        )
        return cls.from_fields(fields, meta)

    # -- reading ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.num_systems

    def __iter__(self) -> Iterator[System]:
        return (System(self, row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...
    @overload
    def __getitem__(self, key: int | np.integer) -> System: ...
    @overload
    def __getitem__(self, key: Any) -> HostBatch: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.field(key)
        n = len(self)
        if isinstance(key, slice):
            return self.take(np.arange(n)[key])
        index = np.asarray(key)
        if index.dtype.kind not in "iu":
            return self.take(index)
        if index.ndim == 0:
            row = int(index)
            if not -n <= row < n:
                raise IndexError(f"the batch has {n} systems, there is no system {row}.")
            return System(self, row % n)
        # As in numpy, negative numbers count from the end.
        return self.take(np.where((index < 0) & (index >= -n), index + n, index))

    def take(self, systems: Any = None) -> HostBatch:
        """Some systems (a mask or indices from 0; all by default), in the order of the indices.

        Raises:
            IndexError: if there is no such system, or the mask has another length.
        """
        return self if systems is None else select_rows(self, systems)

    def to_host(self, systems: Any = None) -> HostBatch:
        """The same as `take`; the counterpart of `Batch.to_host`."""
        return self.take(systems)

    def to_data_list(self, like: AbstractBatch | None = None) -> list[AtomicData]:
        """One AtomicData per system, in order; `like` as in `to_ase`."""
        named = self if like is None else self.with_meta(matching_meta(self, like))
        return [unpack(named, row) for row in range(len(named))]

    def to_ase(self, like: AbstractBatch | None = None) -> list[Atoms]:
        """One ase.Atoms per system, in order, with results in a SinglePointCalculator.

        Args:
            like: a batch with the same systems that provides names, `info` and constraints, which jit and
                vmap drop. Systems are matched by `system_id`.

        Raises:
            ValueError: if `like` has no names, or other systems.
        """
        return [data.to_ase() for data in self.to_data_list(like)]

    # -- showing ---------------------------------------------------------------------------------

    def view(self, systems: Any = None, *, width: int = 640, height: int = 480) -> Any:
        """A 3D view of some systems in a notebook (a mask or indices; by default the first nine).

        It can be turned with the mouse.

        Raises:
            IndexError: if no system is chosen, or there is no such system.
            ImportError: if py3Dmol is not installed.
        """
        rows = np.arange(min(len(self), 9)) if systems is None else np.atleast_1d(systems)
        shown = self.take(rows).to_ase()
        if not shown:
            raise IndexError(f"the batch has {len(self)} systems, none of them in {systems}.")
        return draw_structures(shown, width, height)

    def html_table(self, caption: str) -> str:
        """An HTML table of the systems, at most ten."""
        rows: list[tuple[Any, ...]] = []
        for row, system in zip(range(_SHOWN), self, strict=False):
            fmax = np.linalg.norm(system.forces, axis=1).max()
            numbers = (len(system), f"{system.energy:.6g}", f"{fmax:.4g}", system.status, system.steps_taken)
            rows.append((self.name_of(row), *numbers, system.outcome_text))
        if len(self) > _SHOWN:
            rows.append((f"and {len(self) - _SHOWN} more", *[""] * 6))
        head = ("system", "atoms", "energy (eV)", "fmax (eV/Å)", "status", "steps", "outcome")
        return table(head, rows, caption)

    def _repr_html_(self) -> str:
        readable = isinstance(self.status, np.ndarray) and self.status.ndim == 1
        return self.html_table(repr(self)) if readable else f"<code>{escape(repr(self))}</code>"

    def __repr__(self) -> str:
        if not isinstance(self.status, np.ndarray) or self.status.ndim != 1:
            return f"HostBatch(atoms[{self.atom_capacity}], systems[{self.system_capacity}], {self.dtype})"
        return f"HostBatch({summary(self)}; {self.dtype})"


def summary(batch: AbstractBatch) -> str:
    """ "2 systems, 17 atoms; 1 converged, 0 failed", and ", 1 stopped" where hooks stopped some."""
    done = f"{int(np.sum(batch.converged))} converged, {int(np.sum(batch.failed))} failed"
    if stopped := int(np.sum(np.asarray(batch.outcome) == Outcome.STOPPED)):
        done += f", {stopped} stopped"
    return f"{batch.num_systems} systems, {batch.num_atoms} atoms; {done}"


def select_rows(host: HostBatch, systems: Any) -> HostBatch:
    """Some systems (a mask or indices; None: all) of a HostBatch, which may have padding.

    Raises:
        IndexError: if there is no such system, or the mask has another length.
    """
    # Reading an attribute of a Module takes a microsecond.
    values = vars(host)
    counts, meta = values["atoms_per_system"], values["meta"]
    n, n_atoms = int((counts > 0).sum()), int(counts.sum())
    if systems is None:
        rows, atoms, index = slice(0, n), slice(0, n_atoms), np.arange(n)
    else:
        systems = np.asarray(systems)
        if systems.dtype == bool and systems.shape not in ((n,), counts.shape):
            shape = len(systems) if systems.ndim == 1 else systems.shape
            raise IndexError(f"the mask has {shape} entries, but the batch has {n} systems.")
        # numpy makes an array of floats of an empty list.
        index = np.flatnonzero(systems) if systems.dtype == bool or not systems.size else systems
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise IndexError(f"systems are chosen by a mask or by a list of whole numbers, not by {systems}.")
        if (odd := index[(index < 0) | (index >= n)]).size:
            raise IndexError(f"the batch has {n} systems, there is no system {odd[0]}.")
        rows = index
        atoms = atom_rows(values["first_atom"][index], counts[index])
    chosen = {"atom": atoms, "system": rows}
    fields: dict[str, Any] = {}
    for name, level in level_fields(host):
        value = values[name]
        extras = isinstance(value, dict)
        fields[name] = {k: v[chosen[level]] for k, v in value.items()} if extras else value[chosen[level]]
    if systems is not None:
        counts = fields["atoms_per_system"]
        fields["first_atom"] = (np.cumsum(counts) - counts).astype(np.int32)
        fields["batch_idx"] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    known = meta if systems is None and len(meta) == n else meta.of_rows(index)
    return unsafe_make(HostBatch, {**fields, "largest": values["largest"], "meta": known})


def matching_meta(host: HostBatch, like: AbstractBatch) -> Metadata:
    """The names, `info` and constraints that another batch has for these systems, by `system_id`.

    Raises:
        ValueError: if the other batch has no names, or other systems.
    """
    if is_traced(like.system_id) or np.ndim(like.system_id) != 1:
        raise ValueError("like= takes a batch of arrays on the host side of jit and vmap.")
    if not like.meta:
        raise ValueError(
            "like= takes a batch that knows the names of its systems, this one does not: give the batch that "
            "`from_ase` made, or one that was copied from it outside of jit and vmap."
        )
    n = like.num_systems
    ids, sizes = np.asarray(like.system_id)[:n].tolist(), np.asarray(like.atoms_per_system)[:n].tolist()
    at = {number: row for row, number in enumerate(ids)}
    if len(at) < n:
        raise ValueError("like= takes a batch in which all system_id differ, so that systems can be matched.")
    rows = []
    for number, size in zip(host.system_id.tolist(), host.atoms_per_system.tolist(), strict=True):
        row = at.get(number)
        if row is None:
            raise ValueError(f"the batch of like= has no system with system_id {number}.")
        if sizes[row] != size:
            raise ValueError(
                f"the batch of like= has other systems: that of system_id {number} has {sizes[row]} "
                f"atoms there and {size} here."
            )
        rows.append(row)
    return like.meta.of_rows(np.array(rows, int))


__all__ = ["HostBatch", "System", "matching_meta", "select_rows", "summary"]
