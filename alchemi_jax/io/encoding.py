"""Python values as JSON that gives them back: `info` and constraints of systems in files.

JSON has no tuples, dates, complex numbers, bytes, arrays, and no keys but text. These become objects with a
member `__type__`. Numbers of numpy come back as Python's.
"""

import base64
import datetime
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np


_TYPE, _VALUE = "__type__", "value"
#: Deeper values are stored as text: Python's JSON has a limit, too.
_DEPTH = 100


class NotStorable(TypeError):
    """A value has no form in JSON; the argument is its type."""


def encode(value: Any) -> Any:
    """A value as an object that `json.dumps` takes.

    Raises:
        NotStorable: if there is no form that gives it back.
    """
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise NotStorable(type(value))
    if value is None or isinstance(value, bool):
        return value
    # Subclasses (IntEnum, np.str_, np.float64) come back as the plain type.
    for plain in (str, int, float):
        if isinstance(value, plain):
            return plain(value)
    if type(value) is list:
        return [_encode(v, depth + 1) for v in value]
    if isinstance(value, Mapping):
        if type(value) is dict and all(type(k) is str for k in value) and _TYPE not in value:
            return {k: _encode(v, depth + 1) for k, v in value.items()}
        items = [[_encode(k, depth + 1), _encode(v, depth + 1)] for k, v in value.items()]
        return {_TYPE: "dict", _VALUE: items}
    for name, (kind, to_json, _) in _KINDS.items():
        if isinstance(value, kind):
            return {_TYPE: name, _VALUE: _encode(to_json(value), depth + 1)}
    if isinstance(value, np.datetime64 | np.timedelta64) or hasattr(value, "dtype"):
        return _encode_array(value, depth)
    return _encode_ase(value)


def _encode_array(value: Any, depth: int) -> Any:
    try:
        array = np.asarray(value)
    except Exception:
        raise NotStorable(type(value)) from None
    if isinstance(value, np.generic) and array.dtype.kind in "biufc" and array.dtype.itemsize <= 16:
        plain = array.item()
        if isinstance(plain, bool | int | float | complex):
            return _encode(plain, depth)
    if array.dtype.fields is not None:
        raise NotStorable(type(value))
    out = {_TYPE: "array", "dtype": array.dtype.str, "shape": list(array.shape)}
    if array.dtype.kind == "O":
        return out | {_VALUE: [_encode(v, depth + 1) for v in array.ravel()]}
    if array.dtype.kind in "biuU" or (array.dtype.kind == "f" and array.dtype.itemsize <= 8):
        return out | {_VALUE: array.ravel().tolist()}
    return out | {"base64": base64.b64encode(array.tobytes()).decode()}


def _encode_ase(value: Any) -> Any:
    """Objects of ASE: space groups (of files CIF), and those that ASE's own JSON gives back."""
    from ase.io import jsonio
    from ase.spacegroup import Spacegroup

    if isinstance(value, Spacegroup):
        content = [int(value.no), int(value.setting)]
        try:
            same = Spacegroup(*content) == value
        except Exception:
            same = False
        if same:
            return {_TYPE: "spacegroup", _VALUE: content}
    elif hasattr(value, "ase_objtype"):
        try:
            text = jsonio.encode(value)
            jsonio.decode(text)
        except Exception:
            raise NotStorable(type(value)) from None
        return {_TYPE: "ase", _VALUE: text}
    raise NotStorable(type(value))


def _duration(value: datetime.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


#: name -> type, function to what JSON has, and back. A datetime is a date, too, so it comes first.
_KINDS: dict[str, tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "datetime": (datetime.datetime, lambda v: v.isoformat(), datetime.datetime.fromisoformat),
    "date": (datetime.date, lambda v: v.isoformat(), datetime.date.fromisoformat),
    "time": (datetime.time, lambda v: v.isoformat(), datetime.time.fromisoformat),
    "timedelta": (datetime.timedelta, _duration, lambda v: datetime.timedelta(*v)),
    "complex": (complex, lambda v: [v.real, v.imag], lambda v: complex(*v)),
    "bytes": (bytes, lambda v: base64.b64encode(v).decode(), base64.b64decode),
    "path": (PurePath, str, Path),
    "tuple": (tuple, list, tuple),
    "list": (list, list, list),
    "set": (set, list, set),
    "frozenset": (frozenset, list, frozenset),
}


def decode(value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        Exception: of any type, if the value was not made by `encode`.
    """
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if _TYPE not in value:
        return {k: decode(v) for k, v in value.items()}
    name = value[_TYPE]
    if name == "dict":
        return {decode(k): decode(v) for k, v in value[_VALUE]}
    if name == "array":
        return _decode_array(value)
    if name == "spacegroup":
        from ase.spacegroup import Spacegroup

        return Spacegroup(*value[_VALUE])
    if name == "ase":
        from ase.io import jsonio

        return jsonio.decode(value[_VALUE])
    return _KINDS[name][2](decode(value[_VALUE]))


def _decode_array(value: dict[str, Any]) -> Any:
    dtype, shape = np.dtype(value["dtype"]), tuple(value["shape"])
    if "base64" in value:
        array = np.frombuffer(base64.b64decode(value["base64"]), dtype).copy()
    elif dtype.kind == "O":
        array = np.empty(len(value[_VALUE]), object)
        for i, v in enumerate(value[_VALUE]):
            array[i] = decode(v)
    else:
        array = np.array(value[_VALUE], dtype)
    array = array.reshape(shape)
    return array[()] if dtype.kind in "mM" and not shape else array


def encode_info(info: Mapping[Any, Any], name: str, stacklevel: int = 6) -> list[list[Any]]:
    """Entries of `info` as pairs of key and value in JSON.

    What has no form in JSON is stored as text, with a warning that names the system and the entry.
    """
    pairs = []
    for key, value in info.items():
        stored = []
        for part in (key, value):
            try:
                stored.append(encode(part))
            except (NotStorable, RecursionError):
                warnings.warn(
                    f"{name}: info[{key!r}] holds a {type(part).__name__}, which files do not hold; "
                    "its text is stored.",
                    stacklevel=stacklevel,
                )
                stored.append(str(part))
        pairs.append(stored)
    return pairs


def decode_info(pairs: list[list[Any]], where: str) -> dict[Any, Any]:
    """The inverse of `encode_info`; an entry that cannot be decoded stays as it is stored, with a warning."""
    info = {}
    for key, value in pairs:
        try:
            info[decode(key)] = decode(value)
        except Exception:
            warnings.warn(f"{where}: entry {key!r} of info is kept as it is stored.", stacklevel=3)
            info[key if isinstance(key, str) else json.dumps(key)] = value
    return info


def encode_constraints(constraints: tuple, name: str) -> list[Any]:
    """Constraints of ASE as JSON.

    Raises:
        ValueError: naming system and constraint, if ASE has no dictionary of it.
    """
    out = []
    for constraint in constraints:
        try:
            out.append(encode(constraint.todict()))
        except Exception:
            raise ValueError(
                f"{name}: the constraint {type(constraint).__name__} cannot be stored in a file, since ASE "
                "has no dictionary of it: remove it, or set it again after reading."
            ) from None
    return out


def decode_constraints(stored: list[Any], where: str) -> tuple:
    """The inverse of `encode_constraints`. One that ASE cannot make again is left out, with a warning."""
    from ase.constraints import dict2constraint

    out = []
    for content in stored:
        try:
            out.append(dict2constraint(decode(content)))
        except Exception:
            what = content.get("name", content) if isinstance(content, dict) else content
            warnings.warn(f"{where}: the constraint {what} cannot be made again; left out.", stacklevel=3)
    return tuple(out)


def is_same(a: Any, b: Any) -> bool:
    """Whether two values of `info` are equal: of one kind (a list is no array), NaN equal to NaN.

    Numbers of numpy are equal to Python's.
    """
    if isinstance(a, np.generic):
        a = a.item()
    if isinstance(b, np.generic):
        b = b.item()
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if type(a) is not type(b) or a.shape != b.shape or a.dtype.kind != b.dtype.kind:
            return False
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(is_same(a[k], b[k]) for k in a)
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:
        return True
    return type(a) is type(b) and bool(a == b)
