"""Systems as ase.Atoms, with the fields of a run in `info`, and back; for files written by ASE."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.metadata import Metadata
from alchemi_jax.systems.outcome import BY_TEXT, Outcome, outcome_from_flags


#: Entries of `info` for fields of a Batch that ase.Atoms does not have.
_COUNTS = ("system_id", "status", "steps_taken", "stage_steps")
_FLAGS = ("converged", "failed")
_TARGETS = ("target_temperature", "target_pressure")
SYSTEM_NAME, _TIME = "system_name", "time_fs"
_OUTCOME, _REASON, _CODE = "outcome", "outcome_reason", "outcome_code"


def to_atoms(batch: Batch | HostBatch) -> list[Atoms]:
    """One ase.Atoms per system, with results, and with fields of the run as entries of `info`.

    These are system_id, status, steps_taken, stage_steps, time_fs, converged, failed, outcome ("out of
    steps"), outcome_reason and outcome_code (`reason`) if there is one, system_name, and targets if they are
    set. They replace entries with the same names.
    """
    host = batch.to_host()
    out = host.to_ase()
    for i, atoms in enumerate(out):
        results = atoms.calc.results if atoms.calc is not None else {}
        for key in results:
            # In a file they could not be distinguished from the results.
            atoms.info.pop(key, None)
            atoms.arrays.pop(key, None)
        atoms.info = {k: _storable(v, f"{host.name_of(i)}: info[{k!r}]") for k, v in atoms.info.items()}
        atoms.info.update({k: int(host[k][i]) for k in _COUNTS})
        atoms.info.update({k: bool(host[k][i]) for k in _FLAGS})
        atoms.info.update({k: float(host[k][i]) for k in _TARGETS if np.isfinite(host[k][i])})
        if np.isfinite(host.time[i]):
            atoms.info[_TIME] = float(host.time[i])
        atoms.info[_OUTCOME] = Outcome(int(host.outcome[i])).text
        if host.reason[i]:
            atoms.info[_CODE] = int(host.reason[i])
        if host.meta and host.meta[i].reason:
            atoms.info[_REASON] = host.meta[i].reason
        atoms.info[SYSTEM_NAME] = host.name_of(i)
    return out


def _storable(value: Any, what: str) -> Any:
    """A value that the writers of ASE accept; they leave out other types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value
    return _plain(value, what)


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), what)
    if isinstance(value, dict):
        return {str(k): _plain(v, what) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, what) for v in value]
    warnings.warn(f"{what} holds a {type(value).__name__}; its text is stored.", stacklevel=7)
    return str(value)


def from_atoms(structures: list[Atoms], dtype: Any = None) -> HostBatch:
    """The inverse of `to_atoms`, also for other structures. Results of calculators are included.

    Args:
        structures: at least one.
        dtype: dtype of the floats, as in `Batch.from_ase`.
    """
    data, known = [], []
    for i, atoms in enumerate(structures):
        results = atoms.calc.results if atoms.calc is not None else {}
        atoms = atoms.copy()
        mine = {k: atoms.info.pop(k) for k in (*_COUNTS, *_FLAGS, *_TARGETS, SYSTEM_NAME) if k in atoms.info}
        if atoms.info.get(_OUTCOME) in BY_TEXT:
            names = (_OUTCOME, _REASON, _CODE, _TIME)
            mine |= {k: atoms.info.pop(k) for k in names if k in atoms.info}
        for key, values in atoms.info.pop("_arrays", {}).items():
            atoms.set_array(key, np.asarray(values))
        name = mine.get(SYSTEM_NAME, f"system {i} ({atoms.get_chemical_formula()})")
        one = AtomicData.from_ase(atoms, str(name))
        own = {k: results[k] for k in ("energy", "forces") if k in results}
        if "stress" in results:
            own["stress"] = voigt_6_to_full_3x3_stress(results["stress"])
        data.append(dataclasses.replace(one, **own))
        known.append(mine)
    host = HostBatch.from_data_list(data, dtype)
    fields = {}
    for key in (*_COUNTS, *_FLAGS, *_TARGETS):
        values = [k.get(key, default) for k, default in zip(known, host[key].tolist(), strict=True)]
        fields[key] = np.asarray(values, host[key].dtype)
    flags = outcome_from_flags(fields["converged"], fields["failed"]).tolist()
    outcomes = [BY_TEXT.get(k.get(_OUTCOME), flag) for k, flag in zip(known, flags, strict=True)]
    # Files of earlier versions have steps, but no time.
    times = [k.get(_TIME, float("nan") if k.get("steps_taken") else 0.0) for k in known]
    fields |= {
        "outcome": np.array(outcomes, np.int32),
        "reason": np.array([k.get(_CODE, 0) for k in known], np.int32),
        "time": np.array(times, host.dtype),
    }
    named = zip(host.meta, known, strict=True)
    meta = Metadata(dataclasses.replace(m, reason=str(k.get(_REASON, ""))) for m, k in named)
    return host.replace(**fields).with_meta(meta)
