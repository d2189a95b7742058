"""Systems as ase.Atoms, with the fields of a run in `info`, and back; for files written by ASE."""

import dataclasses
import json
from collections.abc import Collection
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from alchemi_jax.io.encoding import decode_constraints, decode_info, encode_constraints, encode_info
from alchemi_jax.systems.atoms import ATOM_RESULTS, AtomicData
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
_OWN = frozenset({*_COUNTS, *_FLAGS, *_TARGETS, SYSTEM_NAME, _TIME, _OUTCOME, _REASON, _CODE})
#: The entry of `info` with what a format does not give back as it was: JSON of `alchemi_jax.io.encoding`.
EXACT = "_alchemi_jax"


class Dialect:
    """What a file format gives back unchanged; the rest goes into the entry `EXACT` of `info`.

    Attributes:
        reserved: keys of `info` that the format, or ASE, gives another meaning.
    """

    reserved: Collection[str] = ()

    def keeps(self, key: str, value: Any) -> bool:
        """Whether an entry of `info` comes back equal."""
        raise NotImplementedError

    def holds(self, key: str, value: Any) -> bool:
        """Whether an entry can be written so that the file is readable; it may come back as another type."""
        raise NotImplementedError

    def keeps_array(self, key: str, values: np.ndarray, others: Collection[str]) -> bool:
        """Whether an array per atom comes back equal (floats up to digits), beside those of other names."""
        raise NotImplementedError

    def keeps_constraint(self, constraint: Any) -> bool:
        """Whether a constraint of ASE comes back equal."""
        raise NotImplementedError


def to_atoms(batch: Batch | HostBatch, dialect: Dialect | None = None) -> list[Atoms]:
    """One ase.Atoms per system, with results, and with fields of the run as entries of `info`.

    These are system_id, status, steps_taken, stage_steps, time_fs, converged, failed, outcome ("out of
    steps"), outcome_reason and outcome_code (`reason`) if there is one, system_name, and targets if they are
    set. They replace entries with the same names.

    With a dialect, what its format does not give back as it was (tuples, dates, text that reads as a number,
    replaced entries, arrays that are no columns, constraints) is JSON in `info["_alchemi_jax"]`, from which
    `from_atoms` takes it. Entries of `info` also keep a plain form under their own names, if there is one.

    Raises:
        ValueError: for a constraint that has no form in a file.
    """
    host = batch.to_host()
    out = host.to_ase()
    for i, atoms in enumerate(out):
        if dialect is None:
            results = set(atoms.calc.results) if atoms.calc is not None else set()
            # In a file they could not be distinguished from the results.
            atoms.info = {k: plain(v) for k, v in atoms.info.items() if k not in results}
            atoms.arrays = {k: v for k, v in atoms.arrays.items() if k not in results}
        else:
            out[i] = atoms = separate(atoms, dialect, host.name_of(i), _OWN)
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


def separate(atoms: Atoms, dialect: Dialect, name: str, replaced: Collection[str] = ()) -> Atoms:
    """A structure with what the dialect keeps; the rest is JSON in the entry `EXACT` of its `info`.

    Args:
        atoms: not changed.
        dialect: of the format.
        name: for errors and warnings.
        replaced: keys of `info` that will be replaced.

    Raises:
        ValueError: for a constraint that has no form in a file.
    """
    results = set(atoms.calc.results) if atoms.calc is not None else set()
    out = atoms.copy()
    out.info, out.calc = {}, atoms.calc
    exact: dict[str, Any] = {}
    apart = {}
    for key, value in atoms.info.items():
        named = isinstance(key, str) and key not in results and key not in replaced
        named = named and key != EXACT and key not in dialect.reserved
        if named and dialect.keeps(key, value):
            out.info[key] = value
            continue
        apart[key] = value
        if named and dialect.holds(key, loose := plain(value)):
            out.info[key] = loose
    if apart:
        exact["info"] = encode_info(apart, name, stacklevel=8)
    # Written as results, as forces are.
    written = {k for k in ATOM_RESULTS if k in results and k in atoms.arrays}
    out.arrays = {k: v for k, v in out.arrays.items() if k not in written}
    odd = {
        k: v
        for k, v in atoms.arrays.items()
        if k not in written and (k in results or not dialect.keeps_array(k, v, atoms.arrays.keys() - {k}))
    }
    if odd:
        exact["arrays"] = encode_info(odd, name, stacklevel=8)
        out.arrays = {k: v for k, v in out.arrays.items() if k not in odd}
    others = tuple(c for c in atoms.constraints if not dialect.keeps_constraint(c))
    if others:
        exact["constraints"] = encode_constraints(others, name)
        out.set_constraint([c for c in atoms.constraints if dialect.keeps_constraint(c)])
    if exact:
        out.info[EXACT] = json.dumps(exact)
    return out


def plain(value: Any) -> Any:
    """The value in types that JSON has, arrays of numbers apart: tuples as lists, other objects as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value
    return _plain(value, 0)


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        listed = value.tolist()
        return str(listed) if isinstance(listed, np.generic) else _plain(listed, depth)
    if isinstance(value, dict) and depth < 50:
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple) and depth < 50:
        return [_plain(v, depth + 1) for v in value]
    return str(value)


def _separate_run(atoms: Atoms) -> tuple[Atoms, dict[str, Any]]:
    """A structure as it was given to `to_atoms`, without results, and what a run has said about it."""
    atoms = atoms.copy()
    exact = atoms.info.pop(EXACT, None)
    mine = {k: atoms.info.pop(k) for k in (*_COUNTS, *_FLAGS, *_TARGETS, SYSTEM_NAME) if k in atoms.info}
    if atoms.info.get(_OUTCOME) in BY_TEXT:
        names = (_OUTCOME, _REASON, _CODE, _TIME)
        mine |= {k: atoms.info.pop(k) for k in names if k in atoms.info}
    # Earlier versions wrote arrays that .traj does not have into this entry.
    arrays = {} if exact or not isinstance(atoms.info.get("_arrays"), dict) else atoms.info.pop("_arrays")
    # Numbers are numpy's after reading text.
    atoms.info = {k: v.item() if isinstance(v, np.generic) else v for k, v in atoms.info.items()}
    if exact is not None:
        name = str(mine.get(SYSTEM_NAME, "a structure"))
        exact = json.loads(exact) if isinstance(exact, str) else exact
        atoms.info |= decode_info(exact.get("info", []), name)
        arrays |= decode_info(exact.get("arrays", []), name)
        constraints = decode_constraints(exact.get("constraints", []), name)
        atoms.set_constraint([*atoms.constraints, *constraints])
    for key, values in arrays.items():
        atoms.set_array(key, np.asarray(values))
    return atoms, mine


#: What the command line says about a structure in its results, beside the file it came from.
_OF_COMMAND = ("converged", "failed", _OUTCOME, "steps")


def without_run(atoms: Atoms) -> Atoms:
    """A structure that may come from a file of ours, as it went into the run.

    What the format does not have is taken from `_alchemi_jax`, and how the run ended is left out, since it
    says nothing about the next one.

    Structures of other files are returned as they are, whatever names their entries have.
    """
    names = atoms.info.keys()
    ended = atoms.info.get(_OUTCOME)
    by_sink = {SYSTEM_NAME, *_COUNTS, *_FLAGS} <= names
    by_command = {"source_file", "source_index", *_OF_COMMAND} <= names
    if not isinstance(ended, str) or ended not in BY_TEXT or not (by_sink or by_command):
        return atoms
    found, of_run = _separate_run(atoms)
    if not by_sink:
        # Entries that only have the names of fields of a run.
        found.info |= {k: v for k, v in of_run.items() if k not in _OF_COMMAND}
        found.info.pop("steps")
    found.calc = atoms.calc
    return found


def from_atoms(structures: list[Atoms], dtype: Any = None) -> HostBatch:
    """The inverse of `to_atoms`, also for other structures. Results of calculators are included.

    Args:
        structures: at least one.
        dtype: dtype of the floats, as in `Batch.from_ase`.
    """
    data, known = [], []
    for i, atoms in enumerate(structures):
        results = atoms.calc.results if atoms.calc is not None else {}
        atoms, mine = _separate_run(atoms)
        name = str(mine.get(SYSTEM_NAME, f"system {i} ({atoms.get_chemical_formula()})"))
        for key in ATOM_RESULTS:
            if key in results and key not in atoms.arrays:
                atoms.set_array(key, np.asarray(results[key]))
        one = AtomicData.from_ase(atoms, name)
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
