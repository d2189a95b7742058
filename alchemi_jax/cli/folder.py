"""What is in a folder of results: which store is shown, and what of it this program wrote.

Only that is ever replaced or removed, which its content tells; links are not followed.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from alchemi_jax.cli.inputs import is_inputs
from alchemi_jax.cli.outcome import UsageError, os_reason
from alchemi_jax.cli.record import SETTINGS, is_complete
from alchemi_jax.cli.swap import UNFINISHED, repaired
from alchemi_jax.io.parts import sizes_there, whole_name


#: The folder of checkpoints, from which the same command goes on.
CHECKPOINTS = "checkpoints"
#: A mark in pictures: the program that drew them, as PNG, PDF and SVG keep it.
SOFTWARE = "alchemi-jax"
_STORE_FILES = re.compile(r"(zarr\.json|c(\.\d+)*|\d+)(\.new|\.begun)?")
#: Names in a folder of checkpoints.
_CHECKPOINT_FILES = re.compile(
    r"begin\.json|out_of_steps|\d+|\d+\.orbax-checkpoint-tmp.*|\.probe-\d+|\.part-\d+-begin\.json"
)


#: A trained model in a folder of results, and its files.
MODEL, _MODEL_FILES = "model", ("model.json", "arrays.npz")
#: Keys of settings.json, of that of a training, and of the report of one.
_JSON_KEYS = ({"stages", "model"}, {"training", "complete"}, {"step", "steps", "train"})


#: Stores of results, the one to be shown first, of a run that is complete.
_STORES = ("trajectory.zarr", "relaxed.zarr", "finished.zarr")


def find_store(path: str) -> Path:
    """The store at a path: itself, or the one in a folder of results, also of a run that is not finished.

    Raises:
        UsageError: if there is none.
    """
    at = Path(path)
    try:
        if sizes_there(at):
            return at
        if not at.exists():
            raise UsageError(f"{path} does not exist.")
        if not at.is_dir():
            raise UsageError(f"{path} is a file: give a folder of results, or a store that ZarrData wrote.")
        if (at / "zarr.json").exists():
            return at
        repaired(at)
        for folder in (at, at / UNFINISHED):
            # While a relaxation is under way, or goes on, the store in the order of the input is an old one.
            first = _STORES[:1] + (_STORES[1:] if is_complete(folder) else _STORES[:0:-1])
            for name in first:
                if (folder / name / "zarr.json").exists() or sizes_there(folder / name):
                    return folder / name
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e)
        raise UsageError(f"{path!r} cannot be read: {reason}.") from None
    if "training" in _json_of(at / SETTINGS):
        raise UsageError(f"{path} holds a training: alchemi-jax train {path} --report shows it.")
    raise UsageError(f"{path} holds no results: none of {', '.join(_STORES)} is in it.")


def is_ours(path: Path) -> bool:
    """Whether this program wrote the file or store, or it is empty. A link is not ours."""
    if path.is_symlink():
        return False
    if path.is_dir():
        if whole_name(path.name) == CHECKPOINTS:
            return all(_CHECKPOINT_FILES.fullmatch(p.name) and not p.is_symlink() for p in path.iterdir())
        if path.name == MODEL:
            return _is_model(path)
        return path.suffix == ".zarr" and _is_store(path)
    try:
        with path.open("rb") as f:
            start = f.read(1 << 16)
    except OSError:
        return False
    if not start:
        return True
    lines = start.split(b"\n", 2)
    if path.suffix == ".csv":
        return lines[0].startswith((b"step,system_id,status,", b"step,epoch,loss,"))
    if path.suffix == ".extxyz":
        return len(lines) > 1 and b"outcome=" in lines[1]
    if path.suffix == ".json":
        return _is_json_of_ours(path)
    return SOFTWARE.encode() in start


def _is_store(path: Path) -> bool:
    entries = list(path.iterdir())
    if not entries:
        return True
    for folder, folders, files in os.walk(path):
        if any(not _STORE_FILES.fullmatch(name) for name in files):
            return False
        if any((Path(folder) / name).is_symlink() for name in folders + files):
            return False
    try:
        content = json.loads((path / "zarr.json").read_text())
        return str(content["attributes"]["format"]).startswith("alchemi_jax")
    except FileNotFoundError:
        return not any(entry.is_dir() for entry in entries)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_model(path: Path) -> bool:
    """Whether a folder is a trained model, or a part of one."""
    entries = list(path.iterdir())
    if any(entry.name not in _MODEL_FILES or entry.is_symlink() for entry in entries):
        return False
    about = path / _MODEL_FILES[0]
    return not about.exists() or {"format", "model"} <= _json_of(about).keys()


def _is_json_of_ours(path: Path) -> bool:
    content = _json_of(path)
    keys = content.keys()
    return is_inputs(content) or any(known <= keys for known in _JSON_KEYS)


def _json_of(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_target(path: Path, overwrite: bool, source: str) -> None:
    """Whether a file that the user names may be written.

    Raises:
        UsageError: if it exists and is not to be replaced, is a folder or a link, or lies in the store read.
    """
    try:
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"{path} exists: give another file, or --overwrite to replace it.")
        if path.is_symlink():
            raise UsageError(f"{path} is a link, and --overwrite follows none: give the file itself.")
        if path.is_dir():
            raise UsageError(f"{path} is a folder.")
        store = find_store(source).resolve()
        if store == path.resolve() or store in path.resolve().parents:
            raise UsageError(f"{path} lies in {source}, which is read: give another file.")
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e)
        raise UsageError(f"{str(path)!r} cannot be written: {reason}.") from None


def is_same(a: Path, b: Path) -> bool:
    """Whether b is the file a, by whatever name, lies in the folder a, or is the folder of a."""
    # ASE takes an index behind the name: x.extxyz@-1.
    for name in (str(b), str(b).rpartition("@")[0]):
        try:
            if not name or not os.path.exists(name):
                continue
            inner, outer = Path(name).resolve(), a.resolve()
            if os.path.samefile(a, name) or outer in inner.parents or inner == outer.parent:
                return True
        except (OSError, ValueError):
            continue
    return False
