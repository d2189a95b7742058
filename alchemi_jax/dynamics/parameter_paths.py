"""Parameters of an engine by name: `temperature`, `model.epsilon`, `stages.1.friction`, `hooks.0.limit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Shaped

from alchemi_jax.dynamics.engine import AbstractDynamics, FusedStage
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import HookSet


def leaf(engine: AbstractDynamics, name: str) -> Shaped[Array, "..."]:
    """The value of a parameter.

    Raises:
        ValueError: if there is no such parameter, with the names of all parameters; or if it is None or a
            static value (of a shape or a choice), so that it cannot be an array.
    """
    found: Any = None

    def note(value: Any) -> Any:
        nonlocal found
        found = value
        return value

    _change(engine, name.split("."), note, engine, name)
    if not isinstance(found, jax.Array):
        what = "is None: give it a value first" if found is None else f"is fixed at {found!r}: no number"
        raise ValueError(f"{name_of(engine)}: the parameter {name!r} {what}.")
    return found


def with_leaf(engine: AbstractDynamics, name: str, value: Any) -> AbstractDynamics:
    """The engine with another value of a parameter, checked like in its constructor."""
    return _change(engine, name.split("."), lambda _: value, engine, name)


def _change(node: Any, path: list[str], change: Callable[[Any], Any], engine: Any, name: str) -> Any:
    if not path:
        return change(node)
    key, rest = path[0], path[1:]
    children = _children(node)
    if key not in children:
        known = ", ".join(children) or "none"
        raise ValueError(f"{name_of(engine)} has no parameter {name!r}; {name_of(node)} has these: {known}.")
    new = _change(children[key], rest, change, engine, name)
    if isinstance(node, HookSet):
        return HookSet([new if k == key else child for k, child in children.items()])
    if isinstance(node, tuple):
        return tuple(new if k == key else child for k, child in children.items())
    if isinstance(node, FusedStage) and key == "model":
        return dataclasses.replace(
            node, stages=tuple(dataclasses.replace(stage, model=new) for stage in node.stages)
        )
    return dataclasses.replace(node, **{key: new})


def _children(node: Any) -> dict[str, Any]:
    """The children of a node that a name may refer to."""
    if isinstance(node, HookSet | tuple):
        return {str(i): child for i, child in enumerate(node)}
    if not isinstance(node, eqx.Module):
        return {}
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if f.init and f.repr}
    # Those that are not set come last.
    fields = dict(sorted(fields.items(), key=lambda item: item[1] is None))
    return {"model": node.model, **fields} if isinstance(node, FusedStage) else fields


__all__ = ["leaf", "with_leaf"]
