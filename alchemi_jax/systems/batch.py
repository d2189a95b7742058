"""Batch: many systems of atoms as padded JAX arrays, for compiled code.

The capacities are the lengths of the arrays. Padding atoms are at the end and have
`batch_idx == system_capacity`, so that segment sums drop them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Array, Bool, Shaped

from alchemi_jax.errors import description
from alchemi_jax.parameters import as_flag
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.capacity import batch_capacities, float_dtype
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.host import HostBatch, System, select_rows, summary
from alchemi_jax.systems.levels import Data, level_fields, select, unsafe_make
from alchemi_jax.systems.metadata import Metadata as Metadata
from alchemi_jax.systems.metadata import SystemMeta as SystemMeta
from alchemi_jax.systems.metadata import as_metadata
from alchemi_jax.systems.packing import pack
from alchemi_jax.transforms import is_traced


class Batch(AbstractBatch[jax.Array]):
    """Many systems of atoms as JAX arrays, padded to fixed capacities.

    Make one with `Batch.from_ase`, `Batch.from_data_list` or `Batch.from_host`.

    Units: Å, eV, amu, fs. `energy`, `forces` and `stress` are NaN before the first evaluation. `steps_taken`
    counts the steps of a system, `stage_steps` those since it entered its part of a pipeline; `time` (fs) is
    the sum of the time steps of its dynamics. `outcome` says how its run ended (`Outcome`), `reason` is a
    number that says why it failed or was stopped (`engine.reason_text` gives the text); `failed` is true
    where the outcome is FAILED. `fixed` atoms do not move; an atom does not move along x, y or z where
    `fixed_components` says so. `target_temperature` (K) and `target_pressure` (GPa) are set by hooks for
    thermostat and barostat; where they are NaN the values of the engine are used.

    `len(batch)` is the true number of systems; `for system in batch` and `batch[3]` give one of them (a
    `System`); `batch[mask]`, `batch[[1, 4]]` and `to_host` give a `HostBatch`, numpy arrays without padding.
    These fetch the arrays from the device. `batch["energy"]` is the padded array of a field or extra.

    Names, `info` and constraints (`meta`) stay with a batch that is copied on the host; jit, vmap and
    `jax.tree.map` drop them, and `to_ase(like=batch)` brings them back.
    """

    # -- making ----------------------------------------------------------------------------------

    @classmethod
    def from_ase(
        cls,
        atoms: Atoms | Iterable[Any],
        dtype: Any = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        names: Sequence[str] | None = None,
        *,
        largest: int | None = None,
        constraints: str = "keep",
        results: bool = False,
    ) -> Batch:
        """A batch of ASE structures.

        Keeps numbers, positions, cell, pbc, masses, velocities, constraints, `arrays` and `info`. The input
        does not change. FixAtoms, FixCartesian and equivalent constraints are applied (see
        `AtomicData.from_ase`); engines refuse a system with any other constraint. Energies, forces and stress
        are NaN until a model is evaluated, unless `results` is set.

        Args:
            atoms: one structure, or any iterable of them.
            dtype: dtype of the floats and of the run; by default that of JAX (float64 if `jax_enable_x64` is
                set, else float32).
            atom_capacity, system_capacity: lengths of the padded arrays; by default the counts rounded up to
                one of a few sizes, so that similar batches share compiled code.
            names: names of the systems in errors; by default "system 3 (Ar13)".
            constraints: "keep", or "drop" those that engines cannot apply. Then systems run without them, and
                results do not have them.
            largest: capacity for the atoms of one system; by default rounded up likewise. Batches with the
                same three capacities share compiled code.
            results: whether to take over energies, forces and stress that calculators have for these
                structures, or that a file left in `info` and `arrays`: labels for training. Nothing is
                calculated.

        Raises:
            ValueError: naming system and field, see `AtomicData`; for a capacity that is too small.
        """
        if isinstance(atoms, Atoms):
            atoms = [atoms]
        if not isinstance(atoms, Iterable) or isinstance(atoms, str | Mapping | type):
            raise ValueError(f"Batch.from_ase takes ase.Atoms or a list of them, not {description(atoms)}.")
        atoms = list(atoms)
        results = as_flag("results")(results)
        if names is not None and not (isinstance(names, list | tuple) and len(names) == len(atoms)):
            raise ValueError(f"names must be a list of {len(atoms)} texts, one per system, not {names!r}.")
        data = []
        for i, a in enumerate(atoms):
            if not isinstance(a, Atoms):
                raise ValueError(f"Batch.from_ase takes ase.Atoms; entry {i} is a {type(a).__name__}.")
            name = str(names[i]) if names is not None else f"system {i} ({a.get_chemical_formula()})"
            data.append(AtomicData.from_ase(a, name, constraints, results))
        return cls.from_data_list(data, dtype, atom_capacity, system_capacity, largest=largest)

    @classmethod
    def from_data_list(
        cls,
        data: Sequence[AtomicData | System],
        dtype: Any = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        extras: Collection[str] | None = None,
        *,
        largest: int | None = None,
    ) -> Batch:
        """A batch of AtomicData, one per system; arguments as in `from_ase`.

        Extras that all systems have (if `extras` is given, those named in it) become arrays, others go into
        `info`.
        """
        data = list(data)
        if not data:
            raise ValueError("A batch needs at least one system, the list is empty.")
        fields, meta = pack(data, float_dtype(dtype), extras)
        return cls.from_fields(fields, meta, atom_capacity, system_capacity, largest=largest)

    @classmethod
    def from_host(
        cls,
        host: Batch | HostBatch,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        *,
        largest: int | None = None,
    ) -> Batch:
        """A batch from a HostBatch, with all fields and names; capacities as in `from_ase`."""
        host = host.to_host()
        fields = {name: getattr(host, name) for name, _ in level_fields(host)}
        return cls.from_fields(fields, host.meta, atom_capacity, system_capacity, largest=largest)

    @classmethod
    def from_fields(
        cls,
        fields: Mapping[str, Any],
        meta: Metadata | None = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        *,
        largest: int | None = None,
    ) -> Batch:
        """A batch from arrays without padding: all fields except `batch_idx` and `first_atom`, which are
        computed."""
        counts = np.asarray(fields["atoms_per_system"], np.int32)
        n_atoms, n_systems = int(counts.sum()), len(counts)
        room = batch_capacities(counts, atom_capacity, system_capacity, largest)
        length = {"atom": room.atoms, "system": room.systems}
        derived = {
            "batch_idx": np.repeat(np.arange(n_systems, dtype=np.int32), counts),
            "first_atom": np.cumsum(counts, dtype=np.int32) - counts,
        }
        padding = {"batch_idx": room.systems, "first_atom": n_atoms}

        def pad(values: Any, length: int, fill: Any) -> np.ndarray:
            values = np.asarray(values)
            out = np.full((length, *values.shape[1:]), fill, values.dtype)
            out[: len(values)] = values
            return out

        own = {}
        for name, level in level_fields(cls):
            fill = padding.get(name, cls.__dataclass_fields__[name].metadata["fill"])
            given = derived[name] if name in derived else fields[name]
            own[name] = jax.tree.map(lambda v, n=length[level], fill=fill: pad(v, n, fill), given)
        return cls(**jax.device_put(own), largest=room.largest, meta=as_metadata(meta))

    @classmethod
    def concatenate(
        cls,
        batches: Sequence[Batch | HostBatch],
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
    ) -> Batch:
        """The systems of several batches in one, with all their fields.

        Raises:
            ValueError: if they have different dtypes or extras.
        """
        joined = HostBatch.concatenate([b.to_host() for b in batches])
        return cls.from_host(joined, atom_capacity, system_capacity)

    # -- changing --------------------------------------------------------------------------------

    def select(self, mask: Bool[Data, " systems"], other: Batch) -> Batch:
        """The systems of this batch where `mask` is true, those of `other` elsewhere.

        Both batches have systems of the same sizes in the same rows. Under a transform names are kept only if
        both batches have the same.
        """
        atom_mask = jnp.take(jnp.asarray(mask), self.batch_idx, mode="clip")
        chosen = select(atom_mask, mask, self, other)
        if self.meta is other.meta:
            return chosen
        if is_traced(mask) or not self.meta or not other.meta:
            return chosen.with_meta(Metadata((), lost=self.meta.constrained or other.meta.constrained))
        pairs = zip(np.asarray(mask).tolist(), self.meta, other.meta, strict=False)
        return chosen.with_meta(Metadata(a if mine else b for mine, a, b in pairs))

    # -- on the host -----------------------------------------------------------------------------

    def to_host(self, systems: Any = None, *, meta: Metadata | None = None) -> HostBatch:
        """Some systems (a mask or indices; all by default) as numpy arrays without padding.

        Args:
            meta: names, `info` and constraints of all systems; by default those of this batch.

        Raises:
            IndexError: if there is no such system.
            ValueError: under a transform, or for a mapped batch.
        """
        # Reading an attribute of a Module takes a microsecond.
        values = vars(self)
        fields = {name: values[name] for name, _ in level_fields(self)}
        if is_traced(fields):
            raise ValueError(
                "the systems of a batch are read on the host, not under jit, vmap or grad: there use its "
                "arrays, or a host hook."
            )
        if np.ndim(values["status"]) != 1:
            raise ValueError(
                f"the batch is mapped over {np.shape(values['status'])[:-1]}: choose a lane first, for "
                "example jax.tree.map(lambda x: x[0], batch)."
            )
        static = {"largest": values["largest"], "meta": values["meta"] if meta is None else meta}
        return select_rows(unsafe_make(HostBatch, {**jax.device_get(fields), **static}), systems)

    def take(self, systems: Any = None) -> HostBatch:
        """The same as `to_host`."""
        return self.to_host(systems)

    def __len__(self) -> int:
        if is_traced(self.status) or self.status.ndim != 1:
            raise TypeError(f"{self!r} has no len here; batch.num_systems counts under transforms too.")
        return self.num_systems

    def __iter__(self) -> Iterator[System]:
        return iter(self.to_host())

    @overload
    def __getitem__(self, key: str) -> Shaped[Array, "..."]: ...
    @overload
    def __getitem__(self, key: int | np.integer) -> System: ...
    @overload
    def __getitem__(self, key: Any) -> HostBatch: ...
    def __getitem__(self, key: Any) -> Any:
        return self.field(key) if isinstance(key, str) else self.to_host()[key]

    def to_data_list(self, like: AbstractBatch | None = None) -> list[AtomicData]:
        """One AtomicData per system, in order; `like` as in `to_ase`."""
        return self.to_host().to_data_list(like)

    def to_ase(self, like: AbstractBatch | None = None) -> list[Atoms]:
        """One ase.Atoms per system, in order, with results in a SinglePointCalculator.

        Args:
            like: a batch with the same systems that provides names, `info` and constraints, which jit and
                vmap drop. Systems are matched by `system_id`.

        Raises:
            ValueError: if `like` has no names, or other systems.
        """
        return self.to_host().to_ase(like)

    def view(self, systems: Any = None, *, width: int = 640, height: int = 480) -> Any:
        """A 3D view of some systems in a notebook, see `HostBatch.view`."""
        return self.to_host().view(systems, width=width, height=height)

    def _repr_html_(self) -> str:
        readable = isinstance(self.status, jax.Array | np.ndarray) and not is_traced(self.status)
        if not readable or self.status.ndim != 1:
            return f"<code>{escape(repr(self))}</code>"
        return self.to_host().html_table(repr(self))

    def __repr__(self) -> str:
        size = f"atoms[{self.atom_capacity}], systems[{self.system_capacity}], {self.dtype}"
        if is_traced(self.status) or not isinstance(self.status, jax.Array | np.ndarray):
            return f"Batch({size})"
        if self.status.ndim != 1:
            return f"Batch({size}, mapped over {self.status.shape[:-1]})"
        return f"Batch({summary(self)}; {size})"


def as_batch(systems: Any, dtype: Any = None) -> Batch:
    """A Batch from a Batch (returned as it is), a HostBatch, ase.Atoms, AtomicData, a System, or an iterable
    of the last three.

    Args:
        dtype: dtype of the floats as in `Batch.from_ase`, unless the systems are a batch already.

    Raises:
        ValueError: naming the entry that is not a system.
    """
    if isinstance(systems, Batch):
        return systems
    if isinstance(systems, HostBatch):
        return Batch.from_host(systems)
    entries = [systems] if isinstance(systems, Atoms | AtomicData | System) else systems
    if not isinstance(entries, Iterable) or isinstance(entries, str | Mapping | type):
        raise ValueError(f"systems are a Batch, ase.Atoms or a list of them, not a {type(systems).__name__}.")
    data = []
    for i, entry in enumerate(entries):
        if isinstance(entry, Atoms):
            entry = AtomicData.from_ase(entry, f"system {i} ({entry.get_chemical_formula()})")
        if not isinstance(entry, AtomicData | System):
            raise ValueError(f"systems are ase.Atoms or AtomicData; entry {i} is a {type(entry).__name__}.")
        data.append(entry)
    return Batch.from_data_list(data, dtype)


__all__ = ["Batch", "Metadata", "SystemMeta", "as_batch"]
