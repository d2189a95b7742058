"""A model in a folder: what `trained:FOLDER` reads.

    FOLDER/model.json     class, hyperparameters and structure of the model, and what was noted with it
    FOLDER/arrays.npz     its arrays

Modules and dataclasses are written with their fields, functions and classes by module and name. Nothing is
pickled, so no file of a folder is code; reading imports the modules that it names. A model with other parts
can be written as the name of another model, from which it was trained, and its arrays.
"""

import contextlib
import dataclasses
import enum
import hashlib
import importlib
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax._version import __version__
from alchemi_jax.errors import description, name_of
from alchemi_jax.io.replace import repair, replacing
from alchemi_jax.models import registry
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.systems.levels import unsafe_make


FORMAT = 1
_MODEL, _ARRAYS = "model.json", "arrays.npz"
#: Written as numbers of 16 bits, since numpy does not know it.
_BFLOAT16 = np.dtype(jnp.bfloat16)
#: What flax adds to the fields of a module.
_OF_FLAX = ("parent", "name")
#: Public modules in which functions and classes of JAX are looked for.
_OF_JAX = ("jax.numpy", "jax.nn", "jax.nn.initializers", "jax.lax", "jax")


def save(
    folder: str | os.PathLike,
    model: Any,
    about: dict[str, Any] | None = None,
    *,
    base: str | None = None,
) -> None:
    """Write a model to a folder. A process that is killed leaves either the old model or the new one.

        models.save("copper", trainer.averaged(state))
        models.load("trained:copper")                # and `--model trained:copper`

    Args:
        folder: path of the folder, which is created with its parents. A folder with other contents than a
            model is refused.
        model: any model whose parts are Modules, dataclasses, arrays, numbers, texts, containers of these,
            and functions or classes that can be imported.
        about: notes to store with it, such as errors on validation; values that JSON can represent.
        base: for a model with other parts: the name, as `models.load` takes it, of a model that differs only
            in the values of arrays, such as "nequix:nequix-mp-1.nqx". Reading the folder loads that model
            first.

    Raises:
        TypeError: naming the part of a model that cannot be written, such as a lambda, if there is no `base`;
            if JSON cannot represent `about`.
        ValueError: if the folder has other contents, `model` is not a model, or it differs from `base` in
            more than values of arrays.
    """
    if not isinstance(model, AbstractModel):
        raise ValueError(f"save keeps a model, not {description(model)}.")
    path = Path(folder)
    repair(path)
    empty = not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir()))
    if not empty and not _is_model(path):
        raise ValueError(f"{path} is there and has no model in it: give another folder.")
    arrays: dict[str, np.ndarray] = {}
    try:
        tree = _written(model, name_of(model), arrays)
    except TypeError:
        if base is None:
            raise
        arrays = {}
        tree = _of_base(model, base, arrays)
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # pyright: ignore[reportArgumentType]
    found = {
        "format": FORMAT,
        "version": __version__,
        "arrays": hashlib.sha256(packed.getvalue()).hexdigest(),
        "model": tree,
    }
    found["digest"] = _digest(found)
    try:
        text = json.dumps({**found, "about": about or {}}, indent=1)
    except (TypeError, ValueError) as e:
        raise TypeError(f"about must be what JSON can hold: {e}.") from None
    with replacing(path) as new:
        new.mkdir()
        (new / _ARRAYS).write_bytes(packed.getvalue())
        (new / _MODEL).write_text(text)


def load(folder: str | os.PathLike) -> AbstractModel:
    """The model of a folder, with results that are the same bit for bit.

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
    """What was noted with a model.

    Raises:
        ValueError: as `load`.
    """
    return _read(Path(folder))[0]["about"]


def _is_model(path: Path) -> bool:
    return (path / _MODEL).is_file()


def _digest(found: dict[str, Any]) -> str:
    """SHA-256 of what `load` makes the model of."""
    parts = [found["format"], found["version"], found["arrays"], found["model"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not _is_model(path):
        # The folder of a training has it in `model`.
        inner = f"; {path / 'model'} holds one" if _is_model(path / "model") else ""
        raise ValueError(f"{path} holds no model that was trained: there is no {_MODEL} in it{inner}.")
    try:
        found = json.loads((path / _MODEL).read_text())
        if not isinstance(found, dict) or not isinstance(found.get("about"), dict):
            raise ValueError(f"{_MODEL} is not what this package writes")
        if found["format"] != FORMAT:
            raise _OtherVersionError(found.get("version"))
        if _digest(found) != found["digest"]:
            raise ValueError(f"{_MODEL} was changed")
        packed = (path / _ARRAYS).read_bytes()
        if hashlib.sha256(packed).hexdigest() != found["arrays"]:
            raise ValueError(f"{_ARRAYS} is not the one that was written with {_MODEL}")
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _OtherVersionError as e:
        raise ValueError(
            f"{path} was written by alchemi_jax {e}, in a form that {__version__} does not read: read it "
            "with the version that wrote it."
        ) from None
    except KeyError as e:
        raise ValueError(f"{path} is damaged: {_MODEL} lacks {e}.") from None
    except (OSError, ValueError, TypeError) as e:
        why = str(e).rstrip(".") or type(e).__name__
        raise ValueError(f"{path} is damaged: {why}.") from None
    return found, arrays


class _OtherVersionError(Exception):
    """Of the version that wrote a folder."""


# -- writing -------------------------------------------------------------------------------------------


def _written(value: Any, at: str, arrays: dict[str, np.ndarray]) -> Any:
    """A part of a model as JSON, in which names stand for arrays."""
    if value is None or type(value) in (bool, str, int, float):
        return value
    if isinstance(value, jax.Array | np.ndarray) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _array(value, arrays)
    if isinstance(value, np.generic):
        return _written(value.item(), at, arrays)
    if isinstance(value, enum.Enum):
        return {"enum": _place(type(value), at), "value": value.name}
    if isinstance(value, str | int | float):
        # Of a class of its own.
        plain = next(kind for kind in (str, int, float) if isinstance(value, kind))
        return {"plain": _place(type(value), at), "value": plain(value)}
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
    # JAX defines functions in modules of its own that change from version to version.
    places = _OF_JAX if f"{module}".startswith("jax.") or f"{module}".startswith("jax._src") else ()
    known = [f"{p}:{name}" for p in (*places, module)]
    # A lambda has a name where a module keeps it.
    there = vars(sys.modules.get(f"{module}", object)).items()
    known += [f"{module}:{key}" for key, other in there if other is value]
    for place in known:
        with contextlib.suppress(ImportError, ValueError):
            if _imported(place, at) is value:
                if module == "__main__":
                    break
                return place
    raise TypeError(
        f"{at} is {value!r}, which cannot be imported by a name when the model is read: define it at the "
        "top of a module."
    )


def _of_base(model: AbstractModel, base: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The name of another model, and the arrays that take the place of its own."""
    first = registry.load(base)
    mine, tree = jax.tree.flatten(model)
    others, other_tree = jax.tree.flatten(first)
    if tree != other_tree or [description(a) for a in mine] != [description(b) for b in others]:
        raise ValueError(
            f"{name_of(model)} differs from {base}, its base, by more than the values of its arrays."
        )
    leaves = [_written(leaf, f"leaf {k} of {name_of(model)}", arrays) for k, leaf in enumerate(mine)]
    return {"base": base, "leaves": leaves}


# -- reading -------------------------------------------------------------------------------------------


def _imported(place: str, at: str) -> Any:
    module, _, name = place.partition(":")
    needs = f"{at} needs {name} of the module {module}, which"
    try:
        found: Any = importlib.import_module(module)
    except (ImportError, ValueError) as e:
        missing = isinstance(e, ModuleNotFoundError) and f"{module}.".startswith(f"{e.name}.")
        why = "install it, or run in the folder where it is" if missing else str(e).rstrip(".")
        raise ImportError(f"{needs} cannot be imported: {why}.") from None
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise ImportError(
            f"{needs} has no {name} now: if it was moved, import it there under this name, or read the model "
            "with the version that wrote it."
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
        kind = _class_of(entry["class"], tuple, at)
        return kind(*(_made(x, arrays, at) for x in entry["items"]))
    if "base" in entry:
        return _from_base(entry, arrays, at)
    if "dict" in entry:
        return {_made(k, arrays, at): _made(v, arrays, at) for k, v in entry["dict"]}
    for name, kind in (("tuple", tuple), ("list", list), ("frozenset", frozenset)):
        if name in entry:
            return kind(_made(x, arrays, at) for x in entry[name])
    if "enum" in entry:
        return _class_of(entry["enum"], enum.Enum, at)[entry["value"]]
    if "plain" in entry:
        return _class_of(entry["plain"], type(entry["value"]), at)(entry["value"])
    if "dtype" in entry:
        return np.dtype(entry["dtype"])
    return _imported(entry["name"], at)


def _array_of(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    value = arrays[entry["array"]]
    if entry.get("dtype") == "bfloat16":
        value = value.view(_BFLOAT16)
    if entry.get("numpy"):
        return value
    value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
    if entry.get("weak"):
        plain = bool(0) if value.dtype == bool else value.dtype.type(0).item()
        return jnp.full(value.shape, plain).at[...].set(value)
    return jnp.asarray(value)


def _class_of(place: str, base: type, at: str) -> Any:
    kind = _imported(place, at)
    if not isinstance(kind, type) or not issubclass(kind, base):
        raise ValueError(f"{at}: {place} is no {base.__name__} now, as it was when the model was written.")
    return kind


def _from_base(entry: dict[str, Any], arrays: dict[str, np.ndarray], at: str) -> AbstractModel:
    try:
        first = registry.load(entry["base"])
    except (ValueError, ImportError) as e:
        raise type(e)(f"{at} was trained from {entry['base']}, which cannot be read: {e}") from None
    before, tree = jax.tree.flatten(first)
    leaves = [_made(leaf, arrays, at) for leaf in entry["leaves"]]
    if [jnp.shape(a) for a in before] != [jnp.shape(a) for a in leaves]:
        raise ValueError(f"{at} was trained from {entry['base']}, which is another model now.")
    return jax.tree.unflatten(tree, leaves)


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
