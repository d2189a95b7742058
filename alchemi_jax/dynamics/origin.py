"""Origin: which engine and model made a state, so that no other one continues its checkpoint."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rescue import policy_of
from alchemi_jax.errors import name_of


#: Fields of an engine that a continued run may change: how far it goes, and who watches.
_FREE = ("model", "hooks", "n_steps")


class Origin:
    """The engine that made a state; unknown where a state comes out of a function of the user.

    It is a pytree node without leaves, as names are: code never compiles for it, and functions that flatten a
    state (jit, vmap, `jax.tree.map`) return an unknown one.
    """

    __slots__ = ("model", "parts")

    def __init__(self, engine: Engine | None = None):
        self.model: Any = None if engine is None else engine.model
        #: Name and parameters of each part of the pipeline.
        self.parts: tuple[tuple[str, dict[str, Any]], ...] = ()
        if engine is not None:
            # A part without a rescue has that of the pipeline.
            self.parts = tuple(
                (name_of(part), _parameters(part) | {"rescue": policy_of(engine, part)})
                for part in engine.parts
            )

    def describe(self) -> dict[str, Any]:
        """What identifies engine and model, as JSON has it; empty if they are not known."""
        if self.model is None:
            return {}
        parameters: dict[str, str] = {}
        for number, (name, fields) in enumerate(self.parts):
            part = name if len(self.parts) == 1 else f"stage {number}, {name}"
            for field, value in fields.items():
                parameters |= entries(f"{part}.{field}", value)
        return {
            "engine": [name for name, _ in self.parts],
            "parameters": parameters,
            "model": dict(entries(type(self.model).__name__, self.model)),
        }


UNKNOWN = Origin()

jax.tree_util.register_pytree_node(Origin, lambda origin: ((), None), lambda aux, children: UNKNOWN)


def _parameters(part: Any) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.name not in _FREE}


def entries(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names and values of all numbers and texts in a tree; other objects count by their type."""
    if isinstance(value, eqx.Module):
        yield name, type(value).__name__
        for f in dataclasses.fields(value):
            yield from entries(f"{name}.{f.name}", getattr(value, f.name, None))
    elif isinstance(value, Mapping):
        for key in value:
            yield from entries(f"{name}[{key!r}]", value[key])
    elif isinstance(value, tuple | list):
        for number, entry in enumerate(value):
            yield from entries(f"{name}[{number}]", entry)
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        yield name, digest(np.asarray(value))
    elif value is None or isinstance(value, str | int | float | bool):
        yield name, repr(value)
    else:
        yield name, type(value).__name__


def digest(array: np.ndarray) -> str:
    """The number itself, or shape and checksum."""
    if array.ndim == 0:
        return repr(array.item())
    return f"{list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"


def difference(stored: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """What differs between two descriptions: what makes it another run, and which parameter has changed.

    Each is a part of a sentence, empty if there is none or one of the descriptions is not known.
    """
    if not stored or not now:
        return "", ""
    engines = [" + ".join(d["engine"]) for d in (stored, now)]
    if engines[0] != engines[1]:
        return f"the engine was {engines[0]} and is {engines[1]}", ""
    return first_difference(stored["model"], now["model"]), first_difference(
        stored["parameters"], now["parameters"]
    )


def first_difference(old: dict[str, str], new: dict[str, str]) -> str:
    """The first entry that differs, as a part of a sentence; empty if there is none."""
    for name in [*old, *new]:
        before, after = old.get(name, "not there"), new.get(name, "not there")
        if before != after:
            return f"{name} was {before} and is {after}"
    return ""


__all__ = ["UNKNOWN", "Origin", "difference", "digest", "entries", "first_difference"]
