"""The text of extended XYZ: structures of a file without parsing them, and entries that ASE reads back."""

import dataclasses
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import key_val_str_to_dict, per_config_properties, write_xyz

from alchemi_jax.io.encoding import is_same
from alchemi_jax.io.sinks.structures import Dialect, separate


#: Keys and names of columns that need no quotes and no escapes in any reader.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_PRINTABLE = re.compile(r"[ -~]*\Z")
_INT32 = np.iinfo(np.int32)
#: Columns that ASE writes or reads under other names.
_COLUMNS = frozenset({"species", "pos", "Z", "charge", "charges", "symbols", "move_mask"})


class ExtXYZDialect(Dialect):
    """What ASE's reader of extended XYZ gives back equal."""

    reserved = frozenset({"Lattice", "Properties", "pbc", "virial", "stress", *per_config_properties})

    def holds(self, key: str, value: Any) -> bool:
        return bool(_NAME.match(key)) and entry(key, value) is not None

    def keeps(self, key: str, value: Any) -> bool:
        if not _NAME.match(key):
            return False
        if isinstance(value, bool) or (type(value) is int and abs(value) < 1 << 62):
            return key.lower() != "uid"
        text = entry(key, value)
        return text is not None and _reads_as(text, key, value)

    def keeps_array(self, key: str, values: np.ndarray, others: Collection[str]) -> bool:
        if key in ("numbers", "positions"):
            return True
        if not _NAME.match(key) or key in _COLUMNS or key in all_properties or values.ndim > 2:
            return False
        width = values.shape[1] if values.ndim == 2 else 0
        if values.ndim == 2 and width < 2:
            # A single column comes back as one value per atom.
            return False
        if width and any(f"{key}{i}" in others for i in range(width)):
            return False
        kind = values.dtype.kind
        if kind == "i":
            return bool((values >= _INT32.min).all() and (values <= _INT32.max).all())
        if kind == "U":
            return all(
                v and _PRINTABLE.match(v) and not v[0].isspace() and v.split() == [v] for v in values.flat
            )
        return kind in "bf" and values.dtype.itemsize <= 8

    def keeps_constraint(self, constraint: Any) -> bool:
        return type(constraint) in (FixAtoms, FixCartesian)


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def entry(key: str, value: Any) -> str | None:
    """`key=value` as ASE reads it: plain, or as its `_JSON` if it would read the plain text as another value.

    None if neither exists.
    """
    text = None
    if isinstance(value, bool | np.bool_):
        text = f"{key}={'T' if value else 'F'}"
    elif isinstance(value, str) and _PRINTABLE.match(value):
        text = f"{key}={value if _NAME.match(value) else _quote(value)}"
    elif isinstance(value, int | float | np.number) and not isinstance(value, complex | np.complexfloating):
        text = f"{key}={value}"
    elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "if":
        text = f"{key}={_quote(' '.join(map(str, value.tolist())))}"
    if text is not None and _reads_as(text, key, value):
        return text
    try:
        content = json.dumps(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)
    except (TypeError, ValueError, RecursionError):
        return None
    text = f"{key}={_quote('_JSON ' + content)}"
    try:
        key_val_str_to_dict(text)
    except Exception:
        return None
    return text


def _reads_as(text: str, key: str, value: Any) -> bool:
    try:
        found = key_val_str_to_dict(text)
    except Exception:
        return False
    return list(found) == [key] and is_same(found[key], value)


def frame_text(atoms: Atoms) -> str:
    """A structure as text. Entries of `info` that have no form in the file are left out."""
    plain, text = atoms.copy(), io.StringIO()
    plain.info, plain.calc = {}, atoms.calc
    # The annotation of ASE wants a file; this is a text.
    write_xyz(text, plain)
    count, comment, rest = text.getvalue().split("\n", 2)
    entries = [entry(k, v) for k, v in atoms.info.items()]
    return "\n".join([count, " ".join([comment, *filter(None, entries)]), rest])


def structures_text(structures: Iterable[Atoms]) -> str:
    """Structures of anybody's as the text of a file, from which `ExtXYZ.read` gets all that they have.

    What extended XYZ does not hold is JSON in an entry of `info`; see `to_atoms`.
    """
    parts = []
    for i, atoms in enumerate(structures):
        name = str(atoms.info.get("system_name", f"structure {i}"))
        parts.append(frame_text(separate(atoms, ExtXYZDialect(), name)))
    return "".join(parts)


def join_masks(atoms: Atoms) -> None:
    """One FixAtoms, and one FixCartesian per mask, in place of the FixCartesian per atom of a file."""
    mask = np.zeros((len(atoms), 3), bool)
    others = []
    for constraint in atoms.constraints:
        if type(constraint) is FixAtoms:
            mask[constraint.index] = True
        elif type(constraint) is FixCartesian:
            mask[constraint.index] |= constraint.mask
        else:
            others.append(constraint)
    found: list[Any] = []
    if mask.all(axis=1).any():
        found.append(FixAtoms(indices=np.flatnonzero(mask.all(axis=1))))
    partly = mask.any(axis=1) & ~mask.all(axis=1)
    for one in np.unique(mask[partly], axis=0):
        found.append(FixCartesian(np.flatnonzero((mask == one).all(axis=1)), mask=one))
    atoms.set_constraint([*found, *others])


# -- structures of a file ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frame:
    """A structure in a file of xyz.

    Attributes:
        start, end: its bytes.
        line: number of its first line, from 1.
        atoms: how many it says that it has.
        whole: whether all of it is there.
        ours: whether ExtXYZ wrote it; None if it breaks off before that is known.
    """

    start: int
    end: int
    line: int
    atoms: int
    whole: bool
    ours: bool | None


def scan_frames(file: IO[bytes]) -> Iterator[Frame]:
    """The structures of an open file, in order; blank lines between them are left out.

    Raises:
        ValueError: naming the line, if it should be a number of atoms and is not.
    """
    number = 0
    while True:
        start, head = file.tell(), file.readline()
        number += 1
        if not head:
            return
        if not head.strip():
            continue
        try:
            n = int(head)
            if n < 0:
                raise ValueError
        except ValueError:
            text = head.strip().decode(errors="replace")[:60]
            raise ValueError(f"line {number}: a number of atoms was expected, not {text!r}") from None
        line, comment = number, file.readline()
        ended, rows, last, first = comment.endswith(b"\n"), 0, comment, b""
        while rows < n and (row := file.readline()):
            first, last, rows = first or row, row, rows + 1
        number += 1 + rows
        end = file.tell()
        while rows == n and (row := file.readline()).lstrip().startswith(b"VEC"):
            last, end, number = row, file.tell(), number + 1
        file.seek(end)
        ours: bool | None = b"system_id=" in comment and b"system_name=" in comment
        if not ours and not ended:
            ours = None
        # A last line without an end is broken, if we wrote it; others may write it so.
        whole = rows == n and head.endswith(b"\n")
        if whole and not last.endswith(b"\n"):
            whole = not ours and n > 0 and len(last.split()) >= max(len(first.split()), 4)
        yield Frame(start, end, line, n, whole, ours)


@dataclasses.dataclass(frozen=True)
class Contents:
    """Structures of a file, and what follows the last whole one.

    Attributes:
        frames: the whole ones.
        end: byte at which the last of them ends.
        ended: whether a line break is there.
        broken: line of a structure that breaks off after them, if any.
        broken_is_ours: whether ExtXYZ wrote it.
    """

    frames: list[Frame]
    end: int
    ended: bool
    broken: int | None
    broken_is_ours: bool


def scan_file(file: IO[bytes]) -> Contents:
    """The contents of an open file.

    Raises:
        ValueError: if it is no file of xyz.
    """
    frames, broken, is_ours = [], None, False
    for frame in scan_frames(file):
        if frame.whole:
            frames.append(frame)
            continue
        broken = frame.line
        # A structure that breaks off in its head was ours if the one before was.
        is_ours = bool(frame.ours) or (frame.ours is None and bool(frames) and bool(frames[-1].ours))
    end = frames[-1].end if frames else 0
    ended = True
    if frames:
        file.seek(end - 1)
        ended = file.read(1) == b"\n"
    return Contents(frames, end, ended, broken, is_ours)
