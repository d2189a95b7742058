"""Files of xyz and PDB, structure by structure: with the line of an error, and nothing lost between them."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, parse_properties, read_xyz
from ase.io.proteindatabank import read_proteindatabank

from alchemi_jax.io.sinks.extxyz import Frame, join_masks, scan_frames


class ReadError(ValueError):
    """Why a file cannot be read, in a sentence."""


# -- xyz -----------------------------------------------------------------------------------------------------


def read_xyz_text(path: Path) -> Iterator[Atoms]:
    """Structures of a file of (extended) xyz; those after blank lines, where ASE's reader stops, too."""
    with open(path, "rb") as file:
        try:
            frames = list(scan_frames(file))
        except ValueError as e:
            raise ReadError(f"{e}.") from None
        said: set[str] = set()
        for i, frame in enumerate(frames):
            file.seek(frame.start)
            raw = file.read(frame.end - frame.start)
            where = f"structure {i} (line {frame.line})" if len(frames) > 1 else "it"
            if not frame.whole and raw.count(b"\n") < frame.atoms + 1:
                raise ReadError(
                    f"{where} has {frame.atoms} atoms by its first line, but breaks off before that."
                )
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                raise ReadError(f"{where} is no text in UTF-8.") from None
            for message in _unread_columns(text):
                if message not in said:
                    said.add(message)
                    warnings.warn(message, stacklevel=2)
            try:
                # The annotation of ASE says int.
                atoms = next(iter(read_xyz(io.StringIO(text), slice(None))))  # pyright: ignore[reportArgumentType]
            except Exception as e:
                reason = _diagnose(text, frame) or " ".join(str(e).split()) or type(e).__name__
                raise ReadError(f"{'' if where == 'it' else f'structure {i}, '}{reason}.") from None
            join_masks(atoms)
            yield atoms


def _columns(comment: str) -> list[tuple[str, str]]:
    """Name and type of each column of the atoms."""
    found = key_val_str_to_dict(comment.strip()) if comment.strip() else {}
    text = str(found.get("Properties", "species:S:1:pos:R:3"))
    parse_properties(text)
    parts = text.split(":")
    out = []
    for name, kind, n in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        out += [(name, kind)] * int(n)
    return out


def _unread_columns(text: str) -> Iterator[str]:
    lines = text.split("\n", 3)
    try:
        expected = len(_columns(lines[1]))
    except Exception:
        return
    found = len(lines[2].split()) if len(lines) > 2 else 0
    if found > expected:
        yield (
            f"lines have {found} columns, of which the first {expected} are read, since no `Properties=` "
            "of the comment says what the others are (velocities, for example)"
        )


def _diagnose(text: str, frame: Frame) -> str | None:
    """What is wrong with a structure that ASE's reader cannot read, with the line."""
    lines = text.split("\n")
    try:
        columns = _columns(lines[1])
    except Exception as e:
        return f"line {frame.line + 1}: the comment is not understood: {' '.join(str(e).split())}"
    for k, line in enumerate(lines[2 : 2 + frame.atoms]):
        where, words = f"line {frame.line + 2 + k}", line.split()
        if len(words) < len(columns):
            return f"{where}: {len(columns)} columns were expected, not {line.strip()!r}"
        for (name, kind), word in zip(columns, words, strict=False):
            if name == "species" and word.capitalize() not in atomic_numbers:
                if word.isdigit():
                    return (
                        f"{where}: the element is given as the number {word}, which may be an atomic number "
                        "or a type of LAMMPS: write chemical symbols"
                    )
                hint = "; deuterium is H with a mass of 2.014 in a column `masses`" if word == "D" else ""
                return f"{where}: {word!r} is no chemical symbol{hint}"
            try:
                {"R": float, "I": int}.get(kind, str)(word)
            except ValueError:
                return f"{where}: {word!r} is no number"
            if kind == "I" and abs(int(word)) > 2**31:
                return f"{where}: {word} is an integer beyond 32 bits, which ASE's reader does not take"
    return None


# -- PDB -----------------------------------------------------------------------------------------------------


def read_pdb_text(path: Path) -> Iterator[Atoms]:
    """Structures of a PDB file, one per MODEL, each with the cell of the file."""
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise ReadError("it is no text, as files of PDB are.") from None
    head: list[str] = []
    models: list[list[tuple[int, str]]] = [[]]
    for number, line in enumerate(lines, 1):
        if line.startswith(("CRYST1", "ORIGX")):
            # A new cell counts for the model that follows.
            head = [h for h in head if h[:6] != line[:6]] + [line]
        elif line.startswith(("ATOM", "HETATM")):
            models[-1].append((number, line))
        elif line.startswith("END") and models[-1]:
            yield _pdb_model(head, models[-1], len(models) - 1)
            models.append([])
    if models[-1]:
        yield _pdb_model(head, models[-1], len(models) - 1)


def _pdb_model(head: list[str], atoms: list[tuple[int, str]], model: int) -> Atoms:
    letters = {line[16:17] for _, line in atoms} - {" ", ""}
    if len(letters) > 1:
        number = next(n for n, line in atoms if line[16:17] not in (" ", "", min(letters)))
        raise ReadError(
            f"model {model}: atoms have alternate locations ({', '.join(sorted(letters))}, line {number}): "
            "keep one of them."
        )
    occupancies = [_number(line[54:60]) for _, line in atoms]
    if any(o is not None and 0 < o < 0.995 for o in occupancies):
        warnings.warn("sites with an occupancy below 1 are taken as full", stacklevel=3)
    cell = next((h for h in head if h.startswith("CRYST1")), None)
    if cell is not None and all(_number(cell[a : a + 9]) == 1.0 for a in (6, 15, 24)):
        head = [h for h in head if h is not cell]
        warnings.warn("CRYST1 with edges of 1 Å means no cell: read as not periodic", stacklevel=3)
    known = [line[76:78].strip() for _, line in atoms]
    if not all(known):
        warnings.warn(
            "elements are not in columns 77 and 78; taken from the names of the atoms", stacklevel=3
        )
    text = [*head]
    for (number, line), symbol in zip(atoms, known, strict=True):
        symbol = symbol or _pdb_element(line[12:16])
        if symbol.capitalize() not in atomic_numbers:
            raise ReadError(f"line {number}: {symbol or line[12:16].strip()!r} is no chemical symbol.")
        if any(_number(line[a : a + 8]) is None for a in (30, 38, 46)):
            raise ReadError(f"line {number}: coordinates are missing or no numbers: {line[30:54].strip()!r}.")
        text.append(f"{line[:76]:76}{symbol.upper():>2}")
    try:
        found = read_proteindatabank(io.StringIO("\n".join([*text, "END", ""])), index=0)
    except Exception as e:
        raise ReadError(f"model {model}: {' '.join(str(e).split()) or type(e).__name__}.") from None
    assert isinstance(found, Atoms)
    return found


def _pdb_element(name: str) -> str:
    """The element by the name of an atom: it ends in the second of the four columns."""
    padded = f"{name:4}"
    two = padded[:2].strip()
    if padded[0].isdigit() or (padded[0] == "H" and padded[3] != " "):
        # Hydrogens with long names begin in the first column.
        return "H" if "H" in padded[:2] else padded.lstrip("0123456789")[:1]
    return two if two.capitalize() in atomic_numbers else padded.strip()[:1]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
