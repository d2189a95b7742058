"""Checks of a hook when it is attached to a workflow."""

import sys
from enum import Enum
from typing import Any

import numpy as np

from alchemi_jax.errors import name_of
from alchemi_jax.hooks.protocol import Hook, flag, runs_on


MOST_REASONS = 8


def check_hook(hook: Any, what: str) -> None:
    """Check that an object is a hook with a valid frequency.

    Raises:
        TypeError, ValueError: with messages that begin with `what`.
    """
    if isinstance(hook, type):
        raise TypeError(f"{what} is a class: pass an instance of {hook.__name__}.")
    if not isinstance(hook, Hook):
        missing = [a for a in ("stage", "frequency") if not hasattr(hook, a)]
        missing += [] if callable(hook) else ["__call__(ctx, stage)"]
        raise TypeError(f"{what} is not a hook: it has no {' and no '.join(missing)}.")
    frequency = hook.frequency
    integer = isinstance(frequency, int | np.integer) and not isinstance(frequency, bool)
    if not integer or frequency < 1:
        raise ValueError(f"{what}: frequency must be a positive int, not {frequency!r}.")
    if not hasattr(hook, "_runs_on_stage") and not isinstance(hook.stage, Enum):
        raise TypeError(f"{what}: stage must be a member of an Enum, not {hook.stage!r}.")
    reasons = flag(hook, "reasons")
    if not isinstance(reasons, tuple) or len(reasons) > MOST_REASONS:
        raise ValueError(f"{what}: reasons must be a tuple of at most {MOST_REASONS} texts.")


#: Where most hooks act that observe.
_USUAL = ("AFTER_STEP", "AFTER_BATCH")


def check_stages(hook: Any, types: tuple[type[Enum], ...]) -> None:
    """Check that a hook fits a workflow with stages of these enums.

    Raises:
        TypeError: naming the hook.
    """
    if not hasattr(hook, "_runs_on_stage") and not isinstance(hook.stage, types):
        names = " or ".join(t.__name__ for t in types)
        known = [member for t in types for member in t]
        usual = next((m for m in known if m.name in _USUAL), known[0])
        raise TypeError(
            f"{name_of(hook)}.stage must be a {names}, not {hook.stage!r}: give {name_of(hook)}(..., "
            f"stage={usual}), for example."
        )
    for stage in (member for t in types for member in t):
        if runs_on(hook, stage):
            _check_overload(hook, stage)


def _check_overload(hook: Any, stage: Enum) -> None:
    """Check that, if `__call__` is overloaded with plum, one overload takes the stage."""
    call: Any = next((vars(c)["__call__"] for c in type(hook).__mro__ if "__call__" in vars(c)), None)
    # Importing plum is slow, and it has been imported if there is an overload.
    plum = sys.modules.get("plum")
    if plum is None or not isinstance(call, plum.Function):
        return
    for method in call.methods:
        # The stage is the third argument, after the hook and the context.
        types = method.signature.types
        if len(types) == 3 and plum.Signature(*types[:2], type(stage)) <= method.signature:
            return
    raise TypeError(
        f"{name_of(hook)} runs on {stage!r}, but none of its __call__ overloads takes a {name_of(stage)}."
    )


__all__ = ["MOST_REASONS", "check_hook", "check_stages"]
