"""TrainingContext: what hooks see in a training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.hooks.context import HookContext


class Optimizer(eqx.Module):
    """The optimizer in a context.

    Attributes:
        transformation: the gradient transformation of optax.
        state: its state.
    """

    transformation: Any = eqx.field(static=True)
    state: Any = None


class LearningRate(eqx.Module):
    """The learning rate in a context.

    Attributes:
        schedule: the schedule of a ScheduleHook; None without one.
        rate: the present rate; NaN if it is not known.
    """

    schedule: Callable[..., Any] | None = eqx.field(static=True)
    rate: Any = None


class TrainingContext(HookContext):
    """The context of hooks in a training: a `HookContext` with further fields.

    Attributes:
        results: `Results` of the model, from AFTER_FORWARD on.
        updates: what is added to the parameters, from AFTER_OPTIMIZER_STEP on.
        skipped: whether this step is skipped: parameters and optimizer do not change, and it does not count.
        errors: at AFTER_VALIDATION, errors of the results in the loss, by name: `ctx.errors["forces"].mae`.
    """

    results: Any = None
    updates: Any = None
    skipped: Any = None
    errors: Any = None

    def skip(self, condition: Bool[Array, ""]) -> "TrainingContext":
        """The context with this step skipped if the condition is true; from AFTER_BACKWARD on."""
        return dataclasses.replace(self, skipped=self.skipped | jnp.asarray(condition))


__all__ = ["LearningRate", "Optimizer", "TrainingContext"]
