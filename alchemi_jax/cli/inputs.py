"""inputs.json in a folder of results: file, index and SHA-256 of each structure that the run was begun
with."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.write import whole_file
from alchemi_jax.io.encoding import NotStorable, encode, encode_constraints
from alchemi_jax.systems.atoms import AtomicData


T = TypeVar("T")
INPUTS = "inputs.json"
_LIST = "structures"
#: Fields of AtomicData that a run begins with. Results that a file holds are computed again.
_FIELDS = ("numbers", "positions", "cell", "pbc", "masses", "velocities", "fixed", "fixed_components")
#: Where a structure was read from says nothing about it.
_PLACE = ("source_file", "source_index")


class Structure(NamedTuple):
    """Where a structure was read from, and the hash of its content."""

    file: str
    index: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.file}, structure {self.index}"


def structures_of(sources: Iterable[tuple[Path, int, AtomicData]]) -> list[Structure]:
    """File, index and hash of each structure, in order."""
    return [Structure(str(path), index, content_hash(data)) for path, index, data in sources]


def content_hash(data: AtomicData) -> str:
    """SHA-256 of all that a run takes from a structure: atoms, cell, velocities, masses, charge, spin,
    constraints, extras and `info`, but not the name of its file."""
    found = hashlib.sha256()

    def put(name: str, value: Any) -> None:
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            # Of one byte order on all machines.
            array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
            found.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
        else:
            found.update(f"{name} {json.dumps(_text(value))} ".encode())

    for name in _FIELDS:
        put(name, getattr(data, name))
    put("charge", np.float64(data.charge))
    put("spin", np.float64(data.spin))
    for level in ("atom_extras", "system_extras"):
        for key, value in sorted(getattr(data, level).items()):
            put(f"{level} {key}", value)
    info = [(str(k), _text(v)) for k, v in data.info.items() if k not in _PLACE]
    found.update(json.dumps(sorted(info, key=lambda pair: pair[0])).encode())
    found.update(json.dumps([_constraint(c) for c in data.constraints]).encode())
    return found.hexdigest()


def _constraint(constraint: Any) -> Any:
    try:
        return encode_constraints((constraint,), "")
    except ValueError:
        return type(constraint).__name__


def _text(value: Any) -> Any:
    try:
        return encode(value)
    except NotStorable:
        # What it prints may hold an address, which changes from process to process.
        return type(value).__name__


def write_inputs(at: Path, structures: Sequence[Structure]) -> None:
    """Write the file into a folder."""
    lines = ",\n".join(json.dumps(list(structure)) for structure in structures)
    with whole_file(at / INPUTS) as part:
        part.write_text(f'{{"{_LIST}": [\n{lines}\n]}}\n')


def read_inputs(at: Path) -> list[Structure] | None:
    """The structures of the run in a folder; None for results from before they were written down.

    Raises:
        UsageError: if the file is there and cannot be read.
    """

    def parse(content: Any) -> list[Structure]:
        return [Structure(str(file), int(index), str(sha)) for file, index, sha in content[_LIST]]

    return read_json(
        at / INPUTS, parse, "its content is no list of structures", "whether the structures are the same"
    )


def read_json(
    path: Path, parse: Callable[[Any], T], odd: str, unknown: str, other: str = "another out"
) -> T | None:
    """What `parse` makes of a JSON file in a folder of results; None if it is not there.

    Args:
        odd: the reason, if `parse` raises. unknown: what nobody knows without the file. other: what to give
            instead.

    Raises:
        UsageError: if the file is there and cannot be read.
    """
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        reason = e.strerror if isinstance(e, OSError) else odd
        raise UsageError(
            f"{path} cannot be read: {reason}; without it nobody knows {unknown}: put it back, or give "
            f"{other}, or --overwrite."
        ) from None


def is_inputs(content: Any) -> bool:
    """Whether what a JSON file holds is such a list."""
    return isinstance(content, dict) and list(content) == [_LIST]


def change(before: Sequence[Structure], now: Sequence[Structure]) -> str | None:
    """The first difference between two lists of structures, in words; None if their contents are the same."""
    hashes = [[s.sha256 for s in structures] for structures in (before, now)]
    if hashes[0] == hashes[1]:
        return None
    first = next(
        (i for i, (a, b) in enumerate(zip(*hashes, strict=False)) if a != b), min(len(before), len(now))
    )
    gone, new = Counter(hashes[0]), Counter(hashes[1])
    gone, new = gone - new, new - gone
    old = before[first] if first < len(before) else None
    given = now[first] if first < len(now) else None
    lost, added = (s is not None and count[s.sha256] > 0 for s, count in ((old, gone), (given, new)))
    if old and given and lost and added:
        if old[:2] == given[:2]:
            return f"the content of {given} has changed since"
        return f"{given} stands where {old} stood"
    if old and lost:
        return f"{old} is missing"
    if given and added:
        return f"{given} is new"
    # What is given is the same, as often, in another order; or one of several equal structures is missing.
    if old and given and not gone and not new:
        return f"{given} stands where {old} stood"
    if gone:
        return f"{next(s for s in reversed(before) if gone[s.sha256])} is missing"
    return f"{next(s for s in reversed(now) if new[s.sha256])} is new"
