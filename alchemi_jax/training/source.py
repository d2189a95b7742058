"""Structures with labels from whatever holds them: files, stores, databases, sinks, lists."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from alchemi_jax.errors import description
from alchemi_jax.io.read import read_structures
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch, System


#: Labels that are fields of a structure.
FIELDS = ("energy", "forces", "stress")


def read_labelled(source: Any) -> tuple[list[AtomicData], str]:
    """The structures of a source with their labels, and what to call it in messages.

    Args:
        source: ASE structures (one or a list), AtomicData or systems of a batch; a path of a file, folder or
            store; a sink, a Trajectory, a batch; a database of `ase.db`.

    Raises:
        ValueError: naming what is no structure; naming the structure and label that is infinite; ReadError of
            files.
    """
    data, name = _read(source)
    if not data:
        raise ValueError(f"{name} holds no structures, so there is nothing to train on.")
    return [_checked(d) for d in data], name


def _read(source: Any) -> tuple[list[AtomicData], str]:
    if isinstance(source, str | os.PathLike):
        found = read_structures(Path(source))
        several = len({s.path for s in found}) > 1 or len(found) > 1
        data = [_of(s.atoms, f"{s.path.name}@{s.index}" if several else s.path.name) for s in found]
        return data, str(source)
    if isinstance(source, Batch | HostBatch):
        return source.to_data_list(), "the batch"
    if isinstance(source, Sink):
        return (source.read().to_data_list() if len(source) else []), "the sink"
    if isinstance(source, Trajectory):
        return [_of(a, f"row {i}") for i, a in enumerate(source.to_ase())], str(source.path)
    if hasattr(source, "select") and hasattr(source, "get_atoms"):
        rows = [_of(row.toatoms(), f"row {row.id}", row.key_value_pairs) for row in source.select()]
        return rows, "the database"
    if isinstance(source, Atoms | AtomicData | System):
        source = [source]
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise ValueError(
            "data to train on are ASE structures or a list of them, a path, a sink, a batch or a database, "
            f"not {description(source)}."
        )
    return [_entry(i, entry) for i, entry in enumerate(source)], "the list of structures"


def _entry(number: int, entry: Any) -> AtomicData:
    if isinstance(entry, Atoms):
        return _of(entry, f"structure {number}")
    if isinstance(entry, AtomicData):
        return entry
    if isinstance(entry, System):
        names = [f.name for f in dataclasses.fields(AtomicData)]
        return AtomicData(**{name: getattr(entry, name) for name in names})
    raise ValueError(f"data to train on are ASE structures; entry {number} is {description(entry)}.")


def _of(atoms: Atoms, name: str, more: Mapping[str, Any] | None = None) -> AtomicData:
    data = AtomicData.from_ase(
        atoms, f"{name} ({atoms.get_chemical_formula()})", constraints="drop", results=True
    )
    return dataclasses.replace(data, info={**data.info, **more}) if more else data


def _checked(data: AtomicData) -> AtomicData:
    """Without forces that are no labels: writers put zero where an atom is fixed."""
    for name in FIELDS:
        if np.isinf(getattr(data, name)).any():
            raise ValueError(f"{data.name}: its {name} is infinite: correct it, or give NaN for no label.")
    held = data.fixed[:, None] | data.fixed_components
    zero = held & (data.forces == 0)
    return dataclasses.replace(data, forces=np.where(zero, np.nan, data.forces)) if zero.any() else data


def label_of(data: AtomicData, name: str, level: str) -> Any:
    """A label of a structure by its name, None if it has none; a field, an extra or an entry of `info`.

    Raises:
        ValueError: naming the structure, if it is not numeric or infinite.
    """
    if name in FIELDS:
        return getattr(data, name)
    extras = data.atom_extras if level == "atom" else data.system_extras
    value = extras.get(name, data.info.get(name))
    if value is None:
        return None
    try:
        found = np.asarray(value, float)
    except (TypeError, ValueError):
        raise ValueError(f"{data.name}: its {name} is not numeric: {value!r}.") from None
    if np.isinf(found).any():
        raise ValueError(f"{data.name}: its {name} is infinite: correct it, or give NaN for no label.")
    return found


__all__ = ["FIELDS", "label_of", "read_labelled"]
