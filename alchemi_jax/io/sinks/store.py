"""The files of a ZarrData store as a whole: the counts that make rows valid, and going back to fewer rows.

One write of the attributes of the group makes rows valid or invalid. Everything else that a cut does removes
what is not valid any more, so it may end anywhere, and is done again by the next cut.
"""

import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.io.cut import ADVICE
from alchemi_jax.io.sinks.checksum import COUNTS, sign
from alchemi_jax.io.sinks.columns import Column, put_json
from alchemi_jax.io.sinks.layout import FORMAT, VERSION
from alchemi_jax.io.sinks.stored import attributes_of


GROUP, BEGUN = "zarr.json", "zarr.json.begun"
_GROUP_BYTES = 4096
#: Files in the folder of an array.
_OF_ARRAY = re.compile(r"(zarr\.json|c(\.\d+)*)(\.new)?")
#: Arrays that the checksum of the last system is of; every version has them.
_CHECKED = ("frame", "system_id", "atoms_per_system", "positions", "velocities", "energy", "meta")


def empty_attributes() -> dict[str, Any]:
    """Those of a store without systems."""
    return {"format": FORMAT, "version": VERSION, **dict.fromkeys(COUNTS, 0)}


def has_store(path: Path) -> bool:
    """Whether there is a file or store at a path, apart from a store that was never completed."""
    if not path.is_dir():
        return path.exists()
    return any(entry.name != BEGUN for entry in path.iterdir())


def with_path(path: Path, error: Exception) -> Exception:
    """An OSError with the path in its message; other errors as they are."""
    if not isinstance(error, OSError):
        return error
    return type(error)(f"{path} cannot be written: {error.strerror or error}.")


def put_attributes(path: Path, attributes: dict[str, Any], name: str = GROUP) -> None:
    """Write the attributes of the group in one write: complete or absent if the process is killed."""
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    put_json(path / name, sign(content), _GROUP_BYTES)


def lengths(attributes: dict[str, Any]) -> dict[str, int]:
    """Number of valid rows by level."""
    return {
        "atom": attributes["atoms"],
        "system": attributes["systems"],
        "meta": attributes["meta_bytes"],
    }


def open_columns(path: Path, attributes: dict[str, Any]) -> dict[str, Column]:
    """The columns of a store, cut to the valid rows; none if there are no systems."""
    if not attributes["systems"]:
        return {}
    rows = lengths(attributes)
    return {name: Column.existing(path / name, rows[of]) for name, of in attributes["columns"].items()}


def store_state(attributes: dict[str, Any], columns: dict[str, Column]) -> dict[str, int]:
    """The counts of a store, all of it committed, and a checksum of its last system."""
    state = {name: int(attributes[name]) for name in COUNTS}
    return state | {"crc32": _last_checksum(columns) if state["systems"] else 0}


def _last_checksum(columns: dict[str, Column]) -> int:
    number = int(columns["atoms_per_system"].last(1)[0])
    ends = columns["meta_end"].last(2)
    counts = {
        "positions": number,
        "velocities": number,
        "meta": int(ends[-1] - (ends[0] if len(ends) > 1 else 0)),
    }
    crc = 0
    for name in _CHECKED:
        crc = zlib.crc32(np.ascontiguousarray(columns[name].last(counts.get(name, 1))).tobytes(), crc)
    return crc


def cut_store(path: Path, state: dict[str, int]) -> None:
    """Go back to the systems of a state.

    Raises:
        ValueError: naming the path, if the store has fewer, or its last system of them is another; if there
            is no store at the path, or it is damaged.
    """
    wanted = {name: int(state[name]) for name in COUNTS}
    said = f"the checkpoint says that it has {wanted['systems']} systems"
    if not (path / GROUP).exists():
        what = "holds no store" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}, {said}: {ADVICE}.")
    attributes = attributes_of(path)
    if any(attributes[name] < wanted[name] for name in COUNTS):
        raise ValueError(f"{path} has {attributes['systems']} systems, {said}: {ADVICE}.")
    if not wanted["systems"]:
        empty_store(path, attributes)
        return
    attributes |= wanted
    columns = open_columns(path, attributes)
    if _last_checksum(columns) != state["crc32"]:
        raise ValueError(
            f"{path} is not the store of the checkpoint: {said}, and the last of them is another; {ADVICE}."
        )
    put_attributes(path, attributes)
    for column in columns.values():
        column.remove_rest()


def empty_store(path: Path, attributes: dict[str, Any]) -> None:
    """Remove all systems; a store without systems is left."""
    put_attributes(path, attributes | dict.fromkeys(COUNTS, 0))
    for entry in path.iterdir():
        if _is_array(entry):
            shutil.rmtree(entry)
        elif entry.name in (BEGUN, f"{GROUP}.new"):
            entry.unlink()
    put_attributes(path, empty_attributes())


def remove_store(path: Path) -> None:
    """Remove a store; if there are files of others in its folder, a store without systems is left."""
    empty_store(path, attributes_of(path))
    if [entry.name for entry in path.iterdir()] == [GROUP]:
        (path / GROUP).unlink()
        path.rmdir()


def _is_array(folder: Path) -> bool:
    """Whether there are only files of an array in a folder."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(_OF_ARRAY.fullmatch(entry.name) and entry.is_file() for entry in folder.iterdir())


__all__ = [
    "BEGUN",
    "GROUP",
    "cut_store",
    "empty_attributes",
    "empty_store",
    "has_store",
    "lengths",
    "open_columns",
    "put_attributes",
    "remove_store",
    "store_state",
    "with_path",
]
