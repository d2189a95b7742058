"""Batch: many systems of atoms as one padded graph.

The atoms of all systems stand one after another, `batch_idx` says whose they are. Arrays are as long
as the capacity; padding atoms stand at the end and have `batch_idx == system_capacity`, so that
segment sums drop them. Every field declares its level (`alchemi_jax.systems.levels`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from jaxtyping import Bool, Float, Int, Shaped

from alchemi_jax.html import of_batch
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.capacity import capacity, float_dtype, round_up
from alchemi_jax.systems.levels import (
    Data,
    Level,
    atom_rows,
    level_fields,
    per_atom,
    per_system,
    select,
    unsafe_replace,
)
from alchemi_jax.systems.metadata import Metadata as Metadata
from alchemi_jax.systems.metadata import SystemMeta as SystemMeta
from alchemi_jax.systems.packing import packed, unpacked
from alchemi_jax.systems.viewer import still
from alchemi_jax.transforms import is_traced


class Batch(eqx.Module):
    """Many systems of atoms, padded to fixed capacities.

    Make one with `Batch.from_ase` or `Batch.from_data_list`. Arrays of a batch on the host (as host
    hooks and `take` see it) are numpy arrays without padding.

    Units: Å, eV, amu, fs. `energy`, `forces` and `stress` are NaN before the first evaluation.
    `steps_taken` counts the steps of a system, `stage_steps` those since it entered its present stage;
    `time` (fs) is the sum of the time steps of its dynamics. `outcome` says how its run ended (`Outcome`),
    `reason` why it failed or was stopped, as a number (`engine.reason_text` has the words); `failed` is true
    where the outcome is FAILED.
    `target_temperature` (K) and `target_pressure` (GPa) are what hooks ask of thermostat and
    barostat; NaN: what the engine says.
    """

    positions: Float[Data, "atoms 3"] = per_atom()
    numbers: Int[Data, " atoms"] = per_atom()
    masses: Float[Data, " atoms"] = per_atom(fill=1)
    velocities: Float[Data, "atoms 3"] = per_atom()
    forces: Float[Data, "atoms 3"] = per_atom()
    fixed: Bool[Data, " atoms"] = per_atom(fill=True)
    batch_idx: Int[Data, " atoms"] = per_atom()

    cell: Float[Data, "systems 3 3"] = per_system()
    pbc: Bool[Data, "systems 3"] = per_system()
    energy: Float[Data, " systems"] = per_system()
    stress: Float[Data, "systems 3 3"] = per_system()
    charge: Float[Data, " systems"] = per_system()
    spin: Float[Data, " systems"] = per_system(fill=1)
    atoms_per_system: Int[Data, " systems"] = per_system()
    first_atom: Int[Data, " systems"] = per_system()
    system_id: Int[Data, " systems"] = per_system(fill=-1)
    status: Int[Data, " systems"] = per_system()
    converged: Bool[Data, " systems"] = per_system()
    failed: Bool[Data, " systems"] = per_system()
    outcome: Int[Data, " systems"] = per_system()
    reason: Int[Data, " systems"] = per_system()
    steps_taken: Int[Data, " systems"] = per_system()
    stage_steps: Int[Data, " systems"] = per_system()
    time: Float[Data, " systems"] = per_system()
    target_temperature: Float[Data, " systems"] = per_system(fill=np.nan)
    target_pressure: Float[Data, " systems"] = per_system(fill=np.nan)

    atom_extras: dict[str, Shaped[Data, "atoms ..."]] = per_atom()
    system_extras: dict[str, Shaped[Data, "systems ..."]] = per_system()

    largest: int = eqx.field(static=True)  # pyright: ignore[reportGeneralTypeIssues]
    """Capacity for the atoms of one system: the width of a row of `segments`."""
    meta: Metadata | None = eqx.field(static=True, default=None)

    # -- making ----------------------------------------------------------------------------------

    @classmethod
    def from_ase(
        cls,
        atoms: Atoms | Iterable[Any],
        dtype: Any = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        names: Sequence[str] | None = None,
    ) -> Batch:
        """From ASE structures (one, or any number).

        Keeps numbers, positions, cell, pbc, masses, velocities, FixAtoms, `arrays` and `info`;
        results of a calculator are not taken over. The input is left alone.

        Args:
            dtype: of the floats, hence of the run: by default JAX's own (float64 if
                `jax_enable_x64` is set, else float32).
            atom_capacity, system_capacity: lengths of the padded arrays; by default the counts
                rounded up to a few sizes, so that similar batches share compiled code.
            names: what errors call the systems; by default "system 3 (Ar13)".

        Raises:
            ValueError: naming system and field, see `AtomicData`.
        """
        if isinstance(atoms, Atoms):
            atoms = [atoms]
        data = []
        for i, a in enumerate(atoms):
            if not isinstance(a, Atoms):
                raise ValueError(f"Batch.from_ase takes ase.Atoms; entry {i} is a {type(a).__name__}.")
            name = names[i] if names is not None else f"system {i} ({a.get_chemical_formula()})"
            data.append(AtomicData.from_ase(a, name))
        return cls.from_data_list(data, dtype, atom_capacity, system_capacity)

    @classmethod
    def from_data_list(
        cls,
        data: Sequence[AtomicData],
        dtype: Any = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
        extras: Collection[str] | None = None,
    ) -> Batch:
        """From AtomicData, one a system; arguments as in `from_ase`.

        Extras that all systems have become arrays, others stay `info`; of the former only those named in
        `extras`, if it is given.
        """
        data = list(data)
        if not data:
            raise ValueError("A batch needs at least one system, the list is empty.")
        fields, meta = packed(data, float_dtype(dtype), extras)
        return cls.from_fields(fields, meta, atom_capacity, system_capacity)

    @classmethod
    def from_fields(
        cls,
        fields: Mapping[str, Any],
        meta: Metadata | None = None,
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
    ) -> Batch:
        """From arrays without padding: every field but `batch_idx` and `first_atom`, which follow.

        The inverse of `take`, whose batch has the arrays as its fields. Capacities as in `from_ase`.
        """
        counts = np.asarray(fields["atoms_per_system"], np.int32)
        n_atoms, n_systems = int(counts.sum()), len(counts)
        atom_capacity = capacity("atom", atom_capacity, n_atoms, 8, 16)
        system_capacity = capacity("system", system_capacity, n_systems, 4, 1)
        length = {"atom": atom_capacity, "system": system_capacity}
        derived = {
            "batch_idx": np.repeat(np.arange(n_systems, dtype=np.int32), counts),
            "first_atom": np.cumsum(counts, dtype=np.int32) - counts,
        }
        padding = {"batch_idx": system_capacity, "first_atom": n_atoms}

        def padded(values: Any, level: Level, fill: Any) -> np.ndarray:
            values = np.asarray(values)
            out = np.full((length[level], *values.shape[1:]), fill, values.dtype)
            out[: len(values)] = values
            return out

        own = {}
        for f in dataclasses.fields(cls):
            if (level := f.metadata.get("level")) is None:
                continue
            fill = padding.get(f.name, f.metadata["fill"])
            given = derived[f.name] if f.name in derived else fields[f.name]
            own[f.name] = jax.tree.map(lambda v, a=level, b=fill: padded(v, a, b), given)
        largest = round_up(int(counts.max(initial=1)))
        return cls(**jax.device_put(own), largest=largest, meta=meta)

    @classmethod
    def concatenate(
        cls,
        batches: Sequence[Batch],
        atom_capacity: int | None = None,
        system_capacity: int | None = None,
    ) -> Batch:
        """The systems of several batches in one, all their fields kept.

        Raises:
            ValueError: if they have different dtypes or extras.
        """
        hosts = [b.take() for b in batches]
        if not hosts:
            raise ValueError("Batch.concatenate needs at least one batch.")
        if len({(h.dtype, tuple(h.keys())) for h in hosts}) > 1:
            raise ValueError("Batch.concatenate takes batches of one dtype with the same extras.")
        fields = {
            name: jax.tree.map(lambda *x: np.concatenate(x), *(getattr(h, name) for h in hosts))
            for name, _ in level_fields(hosts[0])
        }
        meta = None
        if all(h.meta is not None for h in hosts):
            meta = Metadata(m for h in hosts for m in h.meta or ())
        return cls.from_fields(fields, meta, atom_capacity, system_capacity)

    # -- asking ----------------------------------------------------------------------------------

    @property
    def atom_capacity(self) -> int:
        """Length of the per-atom arrays."""
        return self.batch_idx.shape[-1]

    @property
    def system_capacity(self) -> int:
        """Length of the per-system arrays."""
        return self.atoms_per_system.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """Of the floats."""
        return np.dtype(self.positions.dtype)

    @property
    def atom_mask(self) -> Bool[Data, " atoms"]:
        """True for atoms, False for padding."""
        return self.batch_idx < self.system_capacity

    @property
    def system_mask(self) -> Bool[Data, " systems"]:
        """True for systems, False for padding."""
        return self.atoms_per_system > 0

    @property
    def num_systems(self) -> Any:
        """True number of systems: an int, or a traced integer inside jit."""
        return _count(self.system_mask.sum())

    @property
    def num_atoms(self) -> Any:
        """True number of atoms: an int, or a traced integer inside jit."""
        return _count(self.atoms_per_system.sum())

    num_graphs = num_systems
    num_nodes = num_atoms

    def level(self, key: str) -> Level:
        """The level of a field or extra. Raises KeyError for an unknown name."""
        for name, level in level_fields(self):
            if name == key and not name.endswith("_extras"):
                return level
        if key in self.atom_extras:
            return "atom"
        if key in self.system_extras:
            return "system"
        raise KeyError(f"the batch has no field {key!r}; it has {', '.join(self.keys())}")

    def keys(self) -> list[str]:
        """Names of all fields and extras."""
        own = [name for name, _ in level_fields(self) if not name.endswith("_extras")]
        return list(dict.fromkeys([*own, *self.atom_extras, *self.system_extras]))

    def __getitem__(self, key: str) -> Any:
        self.level(key)
        if key in self.__dataclass_fields__:
            return getattr(self, key)
        return (self.atom_extras if key in self.atom_extras else self.system_extras)[key]

    def name_of(self, system: int) -> str:
        """What errors and warnings call the system in this row."""
        if self.meta is not None and system < len(self.meta):
            return self.meta[system].name
        return f"system {system}"

    # -- changing --------------------------------------------------------------------------------

    def replace(self, **fields: Any) -> Batch:
        """A batch with some fields or extras changed; an unknown name is an error."""
        own, atom, system = {}, {}, {}
        for key, value in fields.items():
            # A structure may come with an array that is called like a field: the field is meant.
            if key in self.__dataclass_fields__:
                own[key] = value
            elif key in self.atom_extras:
                atom[key] = value
            elif key in self.system_extras:
                system[key] = value
            else:
                self.level(key)
        if atom:
            own["atom_extras"] = {**self.atom_extras, **atom}
        if system:
            own["system_extras"] = {**self.system_extras, **system}
        return dataclasses.replace(self, **own)

    def select(self, mask: Bool[Data, " systems"], other: Batch) -> Batch:
        """This batch's systems where `mask` [systems] holds, `other`'s elsewhere, level by level."""
        atom_mask = jnp.take(jnp.asarray(mask), self.batch_idx, mode="clip")
        return select(atom_mask, mask, self, other)

    # -- on the host -----------------------------------------------------------------------------

    def take(self, systems: Any = None) -> Batch:
        """Some systems (a mask or indices; all by default) as numpy arrays without padding."""
        host = self if isinstance(self.status, np.ndarray) else jax.device_get(self)
        counts = host.atoms_per_system
        n, n_atoms = int((counts > 0).sum()), int(counts.sum())
        if systems is None:
            if host is self and n == len(counts) and n_atoms == len(host.batch_idx):
                return self
            rows, rows_of_atoms, index = slice(0, n), slice(0, n_atoms), range(n)
        else:
            systems = np.asarray(systems)
            if systems.dtype == bool and len(systems) not in (n, len(counts)):
                raise IndexError(f"the mask has {len(systems)} entries, but the batch has {n} systems.")
            # An empty list is an array of floats.
            index = np.flatnonzero(systems) if systems.dtype == bool or not systems.size else systems
            if (odd := index[(index < 0) | (index >= n)]).size:
                raise IndexError(f"the batch has {n} systems, there is no system {odd[0]}.")
            rows = index
            rows_of_atoms = atom_rows(np.asarray(host.first_atom)[index], np.asarray(counts)[index])
        cut = {"atom": rows_of_atoms, "system": rows}
        fields: dict[str, Any] = {}
        for name, level in level_fields(host):
            value = getattr(host, name)
            extras = isinstance(value, dict)
            fields[name] = {k: v[cut[level]] for k, v in value.items()} if extras else value[cut[level]]
        new_counts = fields["atoms_per_system"]
        if systems is not None:
            fields["first_atom"] = (np.cumsum(new_counts) - new_counts).astype(np.int32)
            fields["batch_idx"] = np.repeat(np.arange(len(new_counts), dtype=np.int32), new_counts)
        # A Module's attribute costs a microsecond each time.
        known, meta = self.meta, None
        if known is not None and systems is None and len(known) == n:
            meta = known
        elif known is not None and np.max(index, initial=-1) < len(known):
            meta = Metadata(known[i] for i in index)
        return unsafe_replace(self, **fields, meta=meta)

    def to_data_list(self) -> list[AtomicData]:
        """One AtomicData a system, in order."""
        return unpacked(self.take())

    def to_ase(self) -> list[Atoms]:
        """One ase.Atoms a system, in order, with results in a SinglePointCalculator."""
        return [d.to_ase() for d in self.to_data_list()]

    def view(self, systems: Any = None, *, width: int = 640, height: int = 480) -> Any:
        """Some systems (a mask or indices; the first nine by default) to turn with the mouse, in a notebook.

        Raises:
            IndexError: if none is chosen, or there is no such system.
            ImportError: if py3Dmol is not installed.
        """
        chosen = np.arange(min(self.num_systems, 9)) if systems is None else np.atleast_1d(systems)
        shown = self.take(chosen).to_ase()
        if not shown:
            raise IndexError(f"the batch has {self.num_systems} systems, none of them in {systems}.")
        return still(shown, width, height)

    def __len__(self) -> int:
        return self.num_systems

    def _repr_html_(self) -> str:
        plain = isinstance(self.status, jax.Array | np.ndarray) and not is_traced(self.status)
        return of_batch(self) if plain and self.status.ndim == 1 else f"<code>{escape(repr(self))}</code>"

    def __repr__(self) -> str:
        size = f"atoms[{self.atom_capacity}], systems[{self.system_capacity}], {self.dtype}"
        if is_traced(self.status) or not isinstance(self.status, jax.Array | np.ndarray):
            return f"Batch({size})"
        counts = np.asarray(self.atoms_per_system)
        if counts.ndim != 1:
            return f"Batch({size}, mapped over {counts.shape[:-1]})"
        done = f"{int(np.sum(self.converged))} converged, {int(np.sum(self.failed))} failed"
        return f"Batch({self.num_systems} systems, {self.num_atoms} atoms; {done}; {size})"


def _count(n: Any) -> Any:
    return n if is_traced(n) else int(n)
