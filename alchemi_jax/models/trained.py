"""A trained model in a folder: what `trained:FOLDER` reads.

    FOLDER/model.json     class, hyperparameters and structure of the model, and what it was trained with
    FOLDER/arrays.npz     its leaves

Modules and dataclasses are written with their fields, functions and classes by module and name. Nothing is
pickled, so no file of a folder is code; loading imports the modules that it names.
"""

import dataclasses
import enum
import importlib
import json
import os
import types
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax._version import __version__
from alchemi_jax.errors import description, name_of
from alchemi_jax.io.replace import repair, replacing
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.systems.levels import unsafe_make


FORMAT = 1
_MODEL, _ARRAYS = "model.json", "arrays.npz"
#: Written as numbers of 16 bits, since numpy does not know it.
_BFLOAT16 = np.dtype(jnp.bfloat16)
#: What flax adds to the fields of a module.
_OF_FLAX = ("parent", "name")


def save(folder: str | os.PathLike, model: AbstractModel, about: dict[str, Any] | None = None) -> None:
    """Write a model to a folder, which is replaced as a whole: a kill at any moment leaves the old or the
    new one.

        save("copper", trainer.averaged(state))
        models.load("trained:copper")                # and `--model trained:copper`

    Args:
        folder: made with its parents. A folder that has something else than a model is refused.
        model: any model whose parts are Modules, dataclasses, arrays, numbers, texts, containers of these,
            and functions or classes that can be imported.
        about: what to remember with it, such as errors on validation; as JSON has it.

    Raises:
        TypeError: naming the part of a model that cannot be written, such as a lambda.
        ValueError: if the folder has something else in it, or no model is given.
    """
    if not isinstance(model, AbstractModel):
        raise ValueError(f"save keeps a model, not {description(model)}.")
    path = Path(folder)
    repair(path)
    empty = not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))
    if not empty and not _is_model(path):
        raise ValueError(f"{path} is there and has no trained model in it: give another folder.")
    arrays: dict[str, np.ndarray] = {}
    tree = _written(model, name_of(model), arrays)
    text = json.dumps(
        {"format": FORMAT, "version": __version__, "model": tree, "about": about or {}}, indent=1
    )
    with replacing(path) as new:
        new.mkdir()
        np.savez(new / _ARRAYS, **arrays)  # pyright: ignore[reportArgumentType]
        (new / _MODEL).write_text(text)


def load(folder: str | os.PathLike) -> AbstractModel:
    """The model of a folder.

    Arrays of double precision become those of single precision unless `jax_enable_x64` is set.

    Raises:
        ValueError: naming the folder and what is wrong with it: no model, a damaged one, one of another
            version, a class that has other fields now.
        ImportError: naming a class or function that cannot be imported.
    """
    path = Path(folder)
    if not _is_model(path):
        repair(path)
    found, arrays = _read(path)
    try:
        model = _made(found["model"], arrays, str(path))
    except KeyError as e:
        raise ValueError(f"{path} is damaged: {_MODEL} or {_ARRAYS} lacks {e}.") from None
    if not isinstance(model, AbstractModel):
        raise ValueError(f"{path} holds {description(model)}, which is no model.")
    return model


def load_about(folder: str | os.PathLike) -> dict[str, Any]:
    """What was remembered with a model."""
    return _read(Path(folder))[0]["about"]


def _is_model(path: Path) -> bool:
    return (path / _MODEL).is_file()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not _is_model(path):
        raise ValueError(f"{path} holds no trained model: there is no {_MODEL} in it.")
    try:
        found = json.loads((path / _MODEL).read_text())
        with np.load(path / _ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        form = found["format"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path} is damaged: {e or type(e).__name__}.") from None
    if form != FORMAT:
        raise ValueError(f"{path} was written by alchemi-jax {found.get('version')}, in another form.")
    return found, arrays


# -- writing -------------------------------------------------------------------------------------------


def _written(value: Any, at: str, arrays: dict[str, np.ndarray]) -> Any:
    """A part of a model as JSON, in which names stand for arrays."""
    if value is None or (isinstance(value, bool | str | int | float) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, jax.Array | np.ndarray) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _array(value, arrays)
    if isinstance(value, np.generic):
        return _written(value.item(), at, arrays)
    if isinstance(value, enum.Enum):
        return {"enum": _place(type(value), at), "value": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        flax = any(kind.__module__.startswith("flax.linen") for kind in type(value).__mro__)
        names = [f.name for f in dataclasses.fields(value) if not (flax and f.name in _OF_FLAX)]
        kept = {n: _written(getattr(value, n), f"{at}.{n}", arrays) for n in names if hasattr(value, n)}
        return {"class": _place(type(value), at), "fields": kept, "init": not isinstance(value, eqx.Module)}
    if isinstance(value, tuple | list):
        parts = [_written(x, f"{at}[{k}]", arrays) for k, x in enumerate(value)]
        if hasattr(value, "_fields"):
            return {"class": _place(type(value), at), "items": parts}
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, dict | types.MappingProxyType):
        pairs = [
            [_written(k, f"a key of {at}", arrays), _written(v, f"{at}[{k!r}]", arrays)]
            for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, frozenset):
        return {"frozenset": [_written(x, at, arrays) for x in sorted(value)]}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if callable(value):
        return {"name": _place(value, at)}
    raise TypeError(f"{at} is {description(value)}, which cannot be kept in a folder.")


def _array(value: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    name, found = f"a{len(arrays)}", np.asarray(value)
    half = found.dtype == _BFLOAT16
    arrays[name] = found.view(np.uint16) if half else found
    entry: dict[str, Any] = {"array": name}
    if half:
        entry["dtype"] = "bfloat16"
    if isinstance(value, np.ndarray):
        entry["numpy"] = True
    if getattr(value, "weak_type", False):
        # It takes the dtype of the batch.
        entry["weak"] = True
    return entry


def _place(value: Any, at: str) -> str:
    """MODULE:NAME, from which it can be imported again.

    Raises:
        TypeError: naming the part of the model, if it cannot.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    place = f"{module}:{name}"
    try:
        same = _imported(place, at) is value
    except (ImportError, ValueError):
        same = False
    if not same:
        raise TypeError(
            f"{at} is {value!r}, which cannot be imported by a name when the model is read: define it at the "
            "top of a module."
        )
    return place


# -- reading -------------------------------------------------------------------------------------------


def _imported(place: str, at: str) -> Any:
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        raise ImportError(
            f"{at} needs {name} of the module {module}, which cannot be imported: install it, or run in the "
            "folder where it is."
        ) from None
    return found


def _made(entry: Any, arrays: dict[str, np.ndarray], at: str) -> Any:
    """The part of a model that an entry of JSON says."""
    if not isinstance(entry, dict):
        return entry
    if "array" in entry:
        return _array_of(entry, arrays)
    if "fields" in entry:
        return _object(entry, arrays, at)
    if "items" in entry:
        return _imported(entry["class"], at)(*(_made(x, arrays, at) for x in entry["items"]))
    if "dict" in entry:
        return {_made(k, arrays, at): _made(v, arrays, at) for k, v in entry["dict"]}
    for name, kind in (("tuple", tuple), ("list", list), ("frozenset", frozenset)):
        if name in entry:
            return kind(_made(x, arrays, at) for x in entry[name])
    if "enum" in entry:
        return _imported(entry["enum"], at)[entry["value"]]
    if "dtype" in entry:
        return np.dtype(entry["dtype"])
    return _imported(entry["name"], at)


def _array_of(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    value = arrays[entry["array"]]
    if entry.get("dtype") == "bfloat16":
        value = value.view(_BFLOAT16)
    if entry.get("numpy"):
        return value
    if entry.get("weak") and value.ndim == 0:
        return jax.device_put(value.item())
    return jnp.asarray(value, jax.dtypes.canonicalize_dtype(value.dtype))


def _object(entry: dict[str, Any], arrays: dict[str, np.ndarray], at: str) -> Any:
    kind = _imported(entry["class"], at)
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise ValueError(f"{at}: {entry['class']} is no class of a model.")
    fields = {name: _made(value, arrays, at) for name, value in entry["fields"].items()}
    known = {f.name for f in dataclasses.fields(kind)}
    odd = sorted(set(fields) - known)
    if odd:
        raise ValueError(
            f"{at} was written when {entry['class']} had a field {odd[0]!r}, which it has no longer: read it "
            "with the version that wrote it."
        )
    if entry["init"]:
        return kind(**fields)
    missing = []
    for field in dataclasses.fields(kind):
        if field.name in fields:
            continue
        if field.default is not dataclasses.MISSING:
            fields[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            fields[field.name] = field.default_factory()
        else:
            missing.append(field.name)
    if missing:
        raise ValueError(
            f"{at} was written before {entry['class']} had the field {missing[0]!r}: read it with the "
            "version that wrote it."
        )
    # Values are those that converters and checks have passed.
    return unsafe_make(kind, fields)


__all__ = ["FORMAT", "load", "load_about", "save"]
