"""Structures from files of any format that ASE reads, or a sentence that says why not.

Readers of ASE raise errors of any type, often without a hint of the place, and guess in silence what a file
does not say. Here an error names file, structure and line where they are known, what would be guessed is
refused or said in a warning, and warnings of readers reach the user.
"""

import bz2
import gzip
import lzma
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import ase.io
from ase import Atoms
from ase.io.bundletrajectory import BundleTrajectory
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from alchemi_jax.io.check import check_counts, check_structure
from alchemi_jax.io.lammps import is_lammps_data, read_lammps_data, read_lammps_dump
from alchemi_jax.io.sinks.structures import without_run
from alchemi_jax.io.text import ReadError, read_pdb_text, read_xyz_text


class Structure(NamedTuple):
    """A structure of a file: where it is from, its place in the file from 0, and itself."""

    path: Path
    index: int
    atoms: Atoms


_COMPRESSED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: Local variables of readers that hold the text which they are looking at.
_LOOKED_AT = ("text", "token", "symbol", "label", "string", "line", "row", "words", "fields")


def read_structures(path: str | Path, format: str | None = None, index: str | None = None) -> list[Structure]:
    """The structures of a file, of a store of ZarrData, or of all files in a folder.

    Velocities in columns named velo, vel or velocities are taken in Å/fs. Files may be compressed (.gz, .bz2,
    .xz). `file@index` is a part of a file, if there is no file of this name.

    Args:
        path: of a file or folder. Files of a folder are read in the order of their names; those of formats
            that ASE does not know are left out, with a warning.
        format: as ASE calls it; by default from name and contents.
        index: which structures of each file, as in Python: "0", "-1", "::10"; by default all.

    Raises:
        ReadError: naming the file, and the structure and line if they are known, if something is missing, not
            understood, or can only be guessed: elements of LAMMPS types, sites that are shared or partly
            empty, ghost atoms.
    """
    path = Path(path)
    if not path.exists() and "@" in path.name and index is None:
        base, _, part = str(path).rpartition("@")
        if Path(base).exists():
            path, index = Path(base), part
    wanted = _parse_index(index)
    if format is not None and format not in ioformats:
        raise ReadError(
            f"format {format!r} is not one that ASE knows; extxyz, cif and vasp are, for example."
        )
    if not path.exists():
        raise ReadError(f"{path} does not exist.")
    if path.is_file():
        return _of_file(path, format, wanted)
    if not path.is_dir():
        # Reading from a pipe would wait for whoever writes into it.
        raise ReadError(f"{path} is neither a file nor a folder.")
    if (path / "zarr.json").exists():
        return _select(path, _of_store(path), wanted)
    if format == "bundletrajectory" or BundleTrajectory.is_bundle(str(path)):
        return _of_file(path, "bundletrajectory", wanted)
    return _of_folder(path, format, wanted)


def _parse_index(text: str | None) -> int | slice:
    if text is None:
        return slice(None)
    try:
        parts = [int(p) if p.strip() else None for p in text.split(":")]
        if len(parts) > 3 or (len(parts) == 3 and parts[2] == 0) or parts == [None]:
            raise ValueError
    except ValueError:
        raise ReadError(f"index {text!r} is neither a number nor first:last:step.") from None
    return slice(*parts) if len(parts) > 1 else int(parts[0] or 0)


def _select(path: Path, structures: list[Atoms], wanted: int | slice) -> list[Structure]:
    n = len(structures)
    if isinstance(wanted, int) and not -n <= wanted < n:
        raise ReadError(f"{path} has {n} structures, there is no structure {wanted}.")
    numbers = [wanted % n] if isinstance(wanted, int) else range(n)[wanted]
    if not numbers:
        raise ReadError(
            f"{path} holds no structures." if not n else f"{path} has {n} structures, none of them chosen."
        )
    return [Structure(path, i, structures[i]) for i in numbers]


def _of_store(path: Path) -> list[Atoms]:
    from alchemi_jax.io.sinks.zarr import ZarrData

    try:
        return ZarrData(path, mode="r").to_ase()
    except ValueError as e:
        raise ReadError(str(e)) from None


def _of_folder(folder: Path, format: str | None, wanted: int | slice) -> list[Structure]:
    out: list[Structure] = []
    left = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = _format_of(path, format) if path.is_file() else None
        if name is None or not ioformats[name].can_read:
            left.append(path.name)
            continue
        try:
            out += _of_file(path, format, wanted)
        except ReadError:
            # Settings and the like: of the files named so, only those of ASE's database hold structures.
            if name != "json":
                raise
            left.append(path.name)
    if not out:
        raise ReadError(f"{folder} holds no files of structures.")
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        warnings.warn(f"{folder}: left out, since ASE reads no structures from them: {shown}.", stacklevel=3)
    return out


def _format_of(path: Path, format: str | None) -> str | None:
    """The format of a file, None if it is not known."""
    if format is not None:
        return format
    if path.suffix == ".data" and path.is_file():
        return "lammps-data" if is_lammps_data(path) else "n2p2"
    try:
        found = filetype(str(path))
    except (UnknownFileTypeError, OSError, ValueError):
        found = None
    found = found if found in ioformats else None
    if found in (None, "json") and path.is_file() and is_lammps_data(path):
        return "lammps-data"
    return found


def _of_file(path: Path, format: str | None, wanted: int | slice) -> list[Structure]:
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise ReadError(f"{path} is empty.")
        if path.suffix in _COMPRESSED:
            with tempfile.TemporaryDirectory() as folder:
                inner = Path(folder) / path.stem
                with _COMPRESSED[path.suffix](path) as source, open(inner, "wb") as target:
                    shutil.copyfileobj(source, target)
                structures = _parse(path, inner, _format_of(inner, format))
        else:
            structures = _parse(path, path, _format_of(path, format))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        raise ReadError(f"{path} cannot be decompressed: {e}.") from None
    except OSError as e:
        raise ReadError(f"{path} cannot be read: {e.strerror or e}.") from None
    return _select(path, structures, wanted)


def _parse(path: Path, file: Path, format: str | None) -> list[Atoms]:
    """All structures of a file; messages name `path`, of which `file` may be the contents."""
    if format is None:
        raise ReadError(
            f"{path} cannot be read by ASE: neither its name nor its contents say a format it knows."
        )
    place = ""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            check_counts(file, format)
            structures = list(_read(file, format))
            for i, atoms in enumerate(structures):
                place = f"structure {i}: " if len(structures) > 1 else ""
                structures[i] = without_run(check_structure(atoms, format))
        except ReadError as e:
            raise ReadError(f"{path} cannot be read by ASE: {place}{e}") from None
        except (OSError, MemoryError) as e:
            if type(e).__module__ == "builtins" and isinstance(e, OSError):
                raise
            raise ReadError(f"{path} cannot be read by ASE: {explain(e, format)}") from None
        except Exception as e:
            # Readers raise anything, from StopIteration to AssertionError.
            raise ReadError(f"{path} cannot be read by ASE: {explain(e, format)}") from None
    said = [
        w for w in seen if not issubclass(w.category, DeprecationWarning | FutureWarning | ResourceWarning)
    ]
    for text in dict.fromkeys(" ".join(str(w.message).split()) for w in said):
        warnings.warn(f"{path}: {text}", stacklevel=5)
    if not structures:
        raise ReadError(f"{path} holds no structures.")
    return structures


def _read(file: Path, format: str) -> Iterator[Atoms]:
    if format in ("extxyz", "xyz"):
        yield from read_xyz_text(file)
    elif format == "proteindatabank":
        yield from read_pdb_text(file)
    elif format == "lammps-dump-text":
        yield from read_lammps_dump(file)
    elif format == "lammps-data":
        yield read_lammps_data(file)
    else:
        found: Any = ase.io.read(file, ":", format=format, do_not_split_by_at_sign=True)
        yield from [found] if isinstance(found, Atoms) else found


def explain(error: BaseException, format: str) -> str:
    """A sentence for what a reader of ASE raised: what it did not understand, and the text it was at."""
    message = " ".join(str(error).split())
    at = _text_at(error.__traceback__)
    near = f", at {at!r}" if at else ""
    if isinstance(error, MemoryError):
        return f"it asks for more memory than there is{near}."
    if isinstance(error, UnicodeDecodeError):
        return f"it is no text, as files of the format {format} are."
    if isinstance(error, KeyError):
        return f"the reader of the format {format} does not know {message}{near}."
    if isinstance(error, StopIteration | IndexError | EOFError | AssertionError) or not message:
        return f"it breaks off, or is no file of the format {format}{near}."
    if isinstance(error, TypeError | AttributeError | NameError) or len(message.split()) < 3:
        return f"the reader of the format {format} did not understand it{near}."
    return message.rstrip(".") + ("" if not at or at in message else near) + "."


def _text_at(traceback: TracebackType | None) -> str | None:
    """The text that the innermost function of a reader was looking at, if it is known."""
    found = None
    while traceback is not None:
        variables = traceback.tb_frame.f_locals
        for name in _LOOKED_AT:
            value = variables.get(name)
            if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
                value = " ".join(value[:10])
            if isinstance(value, bytes):
                value = value.decode(errors="replace")
            if isinstance(value, str) and len(re.sub(r"\W", "", value)) > 1 and "/" not in value:
                found = " ".join(value.split())[:60]
                break
        traceback = traceback.tb_next
    return found
