"""From AtomicData, one per system, to the arrays of a batch, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alchemi_jax.systems.atoms import KEPT_ARRAYS, AtomicData
from alchemi_jax.systems.bounds import check_positions
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.metadata import Metadata, SystemMeta
from alchemi_jax.systems.outcome import Outcome


def pack(
    data: Sequence[Any], dtype: np.dtype, extras: Collection[str] | None = None
) -> tuple[dict[str, Any], Metadata]:
    """Fields of a batch without padding, except `batch_idx` and `first_atom`, and the metadata.

    Args:
        data: AtomicData or objects with the same attributes, one per system.
        dtype: dtype of the floats.
        extras: see `Batch.from_data_list`.
    """
    for d in data:
        check_positions(d.name, d.positions, dtype)
    counts = np.array([len(d) for d in data], np.int32)
    n = len(data)

    def of_atoms(name: str, kind: Any = dtype) -> np.ndarray:
        return np.concatenate([getattr(d, name) for d in data]).astype(kind)

    def of_systems(name: str, kind: Any = dtype) -> np.ndarray:
        return np.array([getattr(d, name) for d in data]).astype(kind)

    atom_extras = {
        k: np.concatenate([np.asarray(d.atom_extras[k]) for d in data]).astype(t)
        for k, t in _common_extras([d.atom_extras for d in data], 1, dtype, extras).items()
    }
    system_extras = {
        k: np.array([d.system_extras[k] for d in data]).astype(t)
        for k, t in _common_extras([d.system_extras for d in data], 0, dtype, extras).items()
    }
    meta = []
    for d in data:
        rest = {k: v for k, v in d.system_extras.items() if k not in system_extras}
        info = {**d.info, **rest}
        rest = {k: v for k, v in d.atom_extras.items() if k not in atom_extras}
        if rest:
            info[KEPT_ARRAYS] = {**info.get(KEPT_ARRAYS, {}), **rest}
        meta.append(SystemMeta(d.name, info, d.constraints))
    fields: dict[str, Any] = {
        **{k: of_atoms(k) for k in ("positions", "masses", "velocities", "forces")},
        **{k: of_systems(k) for k in ("cell", "energy", "stress", "charge", "spin")},
        "numbers": of_atoms("numbers", np.int32),
        "fixed": of_atoms("fixed", bool),
        "fixed_components": of_atoms("fixed_components", bool),
        "pbc": of_systems("pbc", bool),
        "atoms_per_system": counts,
        "system_id": np.arange(n, dtype=np.int32),
        "status": np.zeros(n, np.int32),
        "converged": np.zeros(n, bool),
        "failed": np.zeros(n, bool),
        "outcome": np.full(n, Outcome.RUNNING, np.int32),
        "reason": np.zeros(n, np.int32),
        "steps_taken": np.zeros(n, np.int32),
        "stage_steps": np.zeros(n, np.int32),
        "time": np.zeros(n, dtype),
        "target_temperature": np.full(n, np.nan, dtype),
        "target_pressure": np.full(n, np.nan, dtype),
        "atom_extras": atom_extras,
        "system_extras": system_extras,
    }
    return fields, Metadata(meta)


def _common_extras(
    extras: list[Mapping[str, Any]], lead: int, dtype: np.dtype, wanted: Collection[str] | None
) -> dict[str, Any]:
    """Extras that every system has with the same trailing shape: name -> dtype in the batch.

    Integers of a batch have 32 bits; those that need more stay on the host, as they are.
    """
    out = {}
    for key in extras[0]:
        if not all(key in e for e in extras) or (wanted is not None and key not in wanted):
            continue
        values = [np.asarray(e[key]) for e in extras]
        kinds = {v.dtype.kind for v in values}
        if len({v.shape[lead:] for v in values}) == 1 and len(kinds) == 1 and kinds <= set("biuf"):
            kind = kinds.pop()
            if kind in "iu" and not all(map(_fits, values)):
                if wanted is not None:
                    raise ValueError(
                        f"extra {key!r} has integers that need more than 32 bits, which a batch does not "
                        "hold: leave it out of `extras`, and it stays with the systems on the host, or "
                        "renumber."
                    )
                continue
            out[key] = dtype if kind == "f" else bool if kind == "b" else np.int32
    return out


def _fits(values: np.ndarray) -> bool:
    """Whether all values are integers of 32 bits."""
    info = np.iinfo(np.int32)
    return not values.size or (int(values.min()) >= info.min and int(values.max()) <= info.max)


def unpack(host: AbstractBatch[np.ndarray], system: int) -> AtomicData:
    """AtomicData of one system of a HostBatch."""
    first = int(host.first_atom[system])
    atoms = slice(first, first + int(host.atoms_per_system[system]))
    meta = host.meta[system] if host.meta else SystemMeta(f"system {system}")
    return AtomicData(
        positions=host.positions[atoms],
        numbers=host.numbers[atoms],
        cell=host.cell[system],
        pbc=host.pbc[system],
        masses=host.masses[atoms],
        velocities=host.velocities[atoms],
        fixed=host.fixed[atoms],
        fixed_components=host.fixed_components[atoms],
        charge=float(host.charge[system]),
        spin=float(host.spin[system]),
        energy=float(host.energy[system]),
        forces=host.forces[atoms],
        stress=host.stress[system],
        atom_extras={k: v[atoms] for k, v in host.atom_extras.items()},
        system_extras={k: v[system] for k, v in host.system_extras.items()},
        info=meta.info,
        constraints=meta.constraints,
        name=meta.name,
    )


__all__ = ["pack", "unpack"]
