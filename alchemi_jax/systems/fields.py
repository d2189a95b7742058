"""AbstractBatch: the fields of many systems of atoms, for JAX arrays or numpy arrays.

The atoms of all systems are one after another; `batch_idx` is the system of each atom. Every field declares
its level (`alchemi_jax.systems.levels`). `Batch` has padded JAX arrays, `HostBatch` numpy arrays without
padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, Shaped

from alchemi_jax.errors import description
from alchemi_jax.systems.levels import (
    Level,
    level_fields,
    per_atom,
    per_system,
    unsafe_replace,
    without_arrays,
)
from alchemi_jax.systems.metadata import EMPTY, Metadata, as_metadata
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.transforms import is_traced


#: The type of the arrays of a batch.
A = TypeVar("A", jax.Array, np.ndarray)
_B = TypeVar("_B", bound="AbstractBatch")


class AbstractBatch(eqx.Module, Generic[A]):
    """The fields of many systems of atoms; see `Batch` and `HostBatch`.

    Units: Å, eV, amu, fs. `energy`, `forces` and `stress` are NaN before the first evaluation. `steps_taken`
    counts the steps of a system, `stage_steps` those since it entered its part of a pipeline; `time` (fs) is
    the sum of the time steps of its dynamics. `outcome` says how its run ended (`Outcome`), `reason` is a
    number that says why it failed or was stopped (`engine.reason_text` gives the text); `failed` is true
    where the outcome is FAILED. `target_temperature` (K) and `target_pressure` (GPa) are set by hooks for
    thermostat and barostat; where they are NaN the values of the engine are used. `fixed` atoms do not move;
    an atom does not move along x, y or z where `fixed_components` says so. `meta` has names, `info` and
    constraints: one SystemMeta per system; empty if they are not known.
    """

    positions: Float[A, "atoms 3"] = per_atom()
    numbers: Int[A, " atoms"] = per_atom()
    masses: Float[A, " atoms"] = per_atom(fill=1)
    velocities: Float[A, "atoms 3"] = per_atom()
    forces: Float[A, "atoms 3"] = per_atom()
    fixed: Bool[A, " atoms"] = per_atom(fill=True)
    fixed_components: Bool[A, "atoms 3"] = per_atom(fill=False)
    batch_idx: Int[A, " atoms"] = per_atom()

    cell: Float[A, "systems 3 3"] = per_system()
    pbc: Bool[A, "systems 3"] = per_system()
    energy: Float[A, " systems"] = per_system()
    stress: Float[A, "systems 3 3"] = per_system()
    charge: Float[A, " systems"] = per_system()
    spin: Float[A, " systems"] = per_system(fill=1)
    atoms_per_system: Int[A, " systems"] = per_system()
    first_atom: Int[A, " systems"] = per_system()
    system_id: Int[A, " systems"] = per_system(fill=-1)
    status: Int[A, " systems"] = per_system()
    converged: Bool[A, " systems"] = per_system()
    failed: Bool[A, " systems"] = per_system()
    outcome: Int[A, " systems"] = per_system()
    reason: Int[A, " systems"] = per_system()
    steps_taken: Int[A, " systems"] = per_system()
    stage_steps: Int[A, " systems"] = per_system()
    time: Float[A, " systems"] = per_system()
    target_temperature: Float[A, " systems"] = per_system(fill=np.nan)
    target_pressure: Float[A, " systems"] = per_system(fill=np.nan)

    atom_extras: dict[str, Shaped[A, "atoms ..."]] = per_atom()
    system_extras: dict[str, Shaped[A, "systems ..."]] = per_system()

    largest: int = eqx.field(static=True)  # pyright: ignore[reportGeneralTypeIssues]
    """Capacity for the atoms of one system: the width of the rectangle of `segments`."""
    meta: Metadata = without_arrays(default=EMPTY, converter=as_metadata)

    # -- reading ---------------------------------------------------------------------------------

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
        """The dtype of the floats."""
        return np.dtype(self.positions.dtype)

    @property
    def atom_mask(self) -> Bool[A, " atoms"]:
        """True for atoms, False for padding."""
        return self.batch_idx < self.system_capacity

    @property
    def free_components(self) -> Bool[A, "atoms 3"]:
        """Axes along which each atom may move, [atoms, 3]; False in padding."""
        return ~(self.fixed[:, None] | self.fixed_components)

    @property
    def system_mask(self) -> Bool[A, " systems"]:
        """True for systems, False for padding."""
        return self.atoms_per_system > 0

    @property
    def num_systems(self) -> Any:
        """True number of systems: an int, or a traced integer inside jit."""
        return _count(self.atoms_per_system, lambda n: n > 0)

    @property
    def num_atoms(self) -> Any:
        """True number of atoms: an int, or a traced integer inside jit."""
        return _count(self.atoms_per_system, lambda n: n)

    num_graphs = num_systems
    num_nodes = num_atoms

    def level(self, key: str) -> Level:
        """The level of a field or extra: "atom", "system" or "shared".

        Raises:
            KeyError: for an unknown name.
        """
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

    def field(self, key: str) -> A:
        """A field or extra by its name, also `batch[key]`.

        Raises:
            KeyError: for an unknown name.
        """
        self.level(key)
        if key in self.__dataclass_fields__:
            return getattr(self, key)
        return (self.atom_extras if key in self.atom_extras else self.system_extras)[key]

    def name_of(self, system: int) -> str:
        """The name of the system in this row, for errors and warnings."""
        return self.meta[system].name if system < len(self.meta) else f"system {system}"

    def outcome_text(self, system: int) -> str:
        """How the run of the system in this row ended, such as "failed: its energy is not finite". On the
        host."""
        outcome = Outcome(int(self.outcome[system]))
        has_reason = outcome in (Outcome.STOPPED, Outcome.FAILED) and system < len(self.meta)
        return outcome.describe(self.meta[system].reason if has_reason else "")

    # -- changing --------------------------------------------------------------------------------

    def replace(self: _B, **fields: Any) -> _B:
        """A batch with some fields or extras changed.

        Lists and arrays of numpy are converted, integers to the width of the field.

        Raises:
            KeyError: for an unknown name.
            ValueError: naming the field, for another shape or dtype than it has. Traced arrays are checked
                where the batch is used.
        """
        own, atom, system, known = {}, {}, {}, self.keys()
        for key, given in fields.items():
            value = given
            if key in known:
                value = _fitted(f"{type(self).__name__}.replace", key, given, self.field(key))
            # An extra may have the same name as a field; the field takes precedence.
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

    def with_meta(self: _B, meta: Metadata | None) -> _B:
        """The batch with names, `info` and constraints, one SystemMeta per system; None: not known."""
        return unsafe_replace(self, meta=as_metadata(meta))

    def with_reasons(self: _B, texts: Mapping[int, str]) -> _B:
        """The batch with texts of reasons, by row, for `outcome_text`, tables and stores.

        Other rows have no text afterwards.
        """
        if not texts and not any(m.reason for m in self.meta):
            return self
        known = self.meta.filled(self.num_systems)
        meta = [
            m if m.reason == texts.get(row, "") else dataclasses.replace(m, reason=texts.get(row, ""))
            for row, m in enumerate(known)
        ]
        return unsafe_replace(self, meta=Metadata(meta))


def _fitted(who: str, key: str, value: Any, old: Any) -> Any:
    """A new value of a field as an array like the old one.

    Raises:
        ValueError: naming the field, if it does not have its shape and dtype.
    """
    if value is old or isinstance(value, Tracer) or isinstance(old, Tracer):
        return value
    if not isinstance(old, jax.Array | np.ndarray):
        return value
    xp = jnp if isinstance(old, jax.Array) else np
    is_known = isinstance(value, jax.Array | np.ndarray)
    try:
        new = value if is_known else np.asarray(value)
        number = new.dtype.kind in "biuf" or isinstance(value, jax.Array)
    except (TypeError, ValueError):
        new, number = value, False
    must = f"it must stay {description(old)}"
    if not number:
        raise ValueError(f"{who}: {key} is {description(value)}; {must}: give an array of numbers.")
    # A batch that is mapped over, as under vmap, has further axes in front.
    if new.shape[new.ndim - old.ndim :] != old.shape or new.ndim < old.ndim:
        what = "an array is as long as the capacity, padding and all (batch.atom_mask, batch.system_mask)"
        raise ValueError(f"{who}: {key} is {description(new)}; {must}: {what}.")
    if new.dtype == old.dtype:
        return xp.asarray(new) if isinstance(new, np.ndarray) else new
    integers = new.dtype.kind in "biu"
    if getattr(new, "weak_type", False) and old.dtype.kind == "f" and new.dtype.kind != "c":
        return new.astype(old.dtype)
    if not is_known or (xp is jnp and isinstance(new, np.ndarray) and not integers):
        # Numbers of Python, and floats that JAX would convert anyway.
        new = jnp.asarray(new) if xp is jnp and not integers else new
        if not is_known and old.dtype.kind == "f":
            return xp.asarray(new, old.dtype)
        if new.dtype == old.dtype:
            return new
    if integers and old.dtype.kind in "biu":
        fitting = np.asarray(new).astype(old.dtype)
        if (fitting == np.asarray(new)).all():
            return xp.asarray(fitting)
        raise ValueError(f"{who}: {key} has integers that do not fit {old.dtype}; {must}.")
    raise ValueError(f'{who}: {key} is {description(new)}; {must}: end with .astype("{old.dtype}").')


def _count(atoms: Any, number: Callable[[Any], Any]) -> Any:
    """The sum over the systems of a number that depends on their atoms; on the host if it can be."""
    return number(atoms).sum() if is_traced(atoms) else int(number(jax.device_get(atoms)).sum())


__all__ = ["A", "AbstractBatch"]
