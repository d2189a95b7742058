"""GuardHook: stops systems for which a condition of the user is true."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.errors import UserCodeError, description, location, user_errors
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.parameters import function
from alchemi_jax.systems.batch import Batch


class GuardHook(TracedHook):
    """Stops systems for which a condition is true. Traced, at AFTER_STEP.

        GuardHook(lambda batch: volume(batch) > 5000, "its cell has opened")
        GuardHook(lambda batch: temperature(batch) > 2000, "it is hotter than 2000 K")
        GuardHook(lambda batch: batch["energy_spread"] > 0.01, "the committee is not sure")

    A system ends with the first step in which the condition is true, in the state that it then has. It is
    neither converged nor failed: its `outcome` is STOPPED, and its reason is the text. The others continue.
    Costs what the condition costs.

    Args:
        condition: condition(batch) -> [systems] bool, traced; its values for padding and for finished systems
            do not matter. `alchemi_jax.observables` has functions for it: `volume`, `temperature`, `fmax`.
            Another function recompiles; for numbers that change from run to run write a hook of your own with
            fields.
        reason: text that completes a sentence, such as "its cell has opened".
        frequency: number of steps from one check to the next.
        stage: stage at which it is checked; at BEFORE_STEP a system can be stopped before its first step.

    Raises:
        UserCodeError: when a run begins, if the condition does not give one bool per system.
    """

    condition: Callable[[Batch], Any] = eqx.field(static=True, converter=function("condition"))
    reason: str = eqx.field(static=True)
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_STEP

    def __check_init__(self):
        if not isinstance(self.reason, str) or not self.reason.strip():
            raise ValueError(f"GuardHook: reason must be a text that says why, not {self.reason!r}.")

    @property
    def reasons(self) -> tuple[str, ...]:
        """The text, as a tuple of one."""
        return (self.reason,)

    def init(self, batch: Batch) -> None:
        self._judge(batch)

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        return ctx.stop(self._judge(ctx.batch))

    def _judge(self, batch: Any) -> Any:
        with user_errors("GuardHook.condition", "hook"):
            found = self.condition(batch)
        shape = (batch.system_capacity,)
        if getattr(found, "shape", None) != shape or found.dtype != jnp.bool_:
            raise UserCodeError(
                f"the condition of GuardHook returned {description(found)}; it must return one bool per "
                f"system, bool[{shape[0]}]{location(self.condition)}. any_by_system and max_by_system of "
                "alchemi_jax.segments make one value per system from those of its atoms."
            )
        return found


__all__ = ["GuardHook"]
