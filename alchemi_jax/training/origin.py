"""What made the checkpoints of a training, so that no other training goes on from them."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alchemi_jax.dynamics.origin import digest, entries, first_difference
from alchemi_jax.errors import name_of


_ADDRESS = re.compile(r"0x[0-9a-f]+")
#: Parts of a description that are programs: another version of a library writes the same one otherwise.
_PROGRAMS = ("optimizer", "functions")


def describe(trainer: Any, data: Any, validation: Any, params: Any) -> dict[str, Any]:
    """What a training follows from, besides its key: texts by name, for JSON.

    Args:
        params: the parameters that are trained, before the first step.
    """
    functions = dict(_functions_of("loss", trainer.loss))
    hooks: dict[str, str] = {}
    for number, hook in enumerate(trainer.hooks.traced):
        hooks |= entries(f"hook {number}, {name_of(hook)}", hook)
        functions |= _functions_of(f"hook {number}, {name_of(hook)}", hook)
    loss = trainer.loss
    return {
        "data": {"batches per epoch": str(len(data)), **_contents_of("data", data)},
        "validation": {} if validation is None else _contents_of("validation", validation),
        "model": dict(entries(name_of(trainer.model), trainer.model)),
        "loss": dict(entries("loss", loss)) if isinstance(loss, eqx.Module) else {"loss": _name(loss)},
        "hooks": hooks,
        "precision": dict(entries("precision", trainer.precision)),
        "optimizer": {"optimizer": _optimizer(trainer.optimizer, params)},
        "functions": functions,
        "versions": {"jax": jax.__version__, "optax": optax.__version__},
    }


def difference(stored: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing that differs, as a part of a sentence; empty if there is none."""
    same = stored["versions"] == now["versions"]
    for part in now:
        if part == "versions" or (part in _PROGRAMS and not same):
            continue
        old, new = stored[part], now[part]
        if part == "validation" and not (old and new):
            # Validations do not change what is trained.
            continue
        found = first_difference(old, new)
        if found and (part in _PROGRAMS or found.startswith("contents of")):
            # Checksums say nothing to people.
            name = found.split(" was ")[0]
            return f"the {name} {'are' if name.startswith('contents') else 'is'} not the same"
        if found:
            return found
    return ""


def _contents_of(what: str, data: Any) -> dict[str, str]:
    """A checksum of data that have one."""
    return {f"contents of the {what}": data.fingerprint()} if hasattr(data, "fingerprint") else {}


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", name_of(function))


def _functions_of(name: str, value: Any) -> dict[str, str]:
    """Schedules in a loss or a hook, as programs."""
    if not isinstance(value, eqx.Module):
        return {}
    found = {}
    for field in dataclasses.fields(value):
        inside = getattr(value, field.name, None)
        for key, function in (inside if isinstance(inside, dict) else {"": inside}).items():
            if callable(function) and not isinstance(function, eqx.Module | type):
                place = f"{name}.{field.name}" + (f"[{key!r}]" if key else "")
                found[place] = _program(function, jnp.zeros((), jnp.int32))
    return found


def _optimizer(optimizer: Any, params: Any) -> str:
    return _program(lambda p: optimizer.update(p, optimizer.init(p), p), params)


def _program(function: Callable[..., Any], *given: Any) -> str:
    """A checksum of what a function computes, with the numbers in it; its name if it cannot be traced."""
    try:
        closed = jax.make_jaxpr(function)(*given)
    except Exception:
        return _name(function)
    text = _ADDRESS.sub("", str(closed.jaxpr))
    constants = ", ".join(digest(np.asarray(c)) for c in closed.consts if hasattr(c, "dtype"))
    return hashlib.sha256(f"{text} {constants}".encode()).hexdigest()[:16]


__all__ = ["describe", "difference"]
