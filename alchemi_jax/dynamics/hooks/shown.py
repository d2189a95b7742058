"""Which state of each system a hook has shown, and how many steps that state has behind it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext


#: Before these stages a step has not moved anything.
BEFORE_MOVING = (DynamicsStage.BEFORE_STEP, DynamicsStage.BEFORE_PRE_UPDATE)


def completed_steps(ctx: HookContext, stage: Any) -> Int[Array, " systems"]:
    """Completed steps of the states that a recording hook sees at a stage: the step that it is called in is
    counted at its end."""
    steps = jnp.asarray(ctx.batch.steps_taken)
    if stage in BEFORE_MOVING or stage is DynamicsStage.ON_CONVERGE:
        return steps
    return steps + jnp.asarray(ctx.active_mask).astype(steps.dtype)


class Shown:
    """Which state of each system a hook has shown last, so that none is shown twice."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}

    def note(self, system_id: Any, steps_taken: Any) -> None:
        """These systems were shown after so many steps."""
        self._steps.update(zip(np.asarray(system_id).tolist(), np.asarray(steps_taken).tolist(), strict=True))

    def is_new(self, system_id: Any, steps_taken: Any) -> Bool[np.ndarray, " systems"]:
        """[systems] Those that were not shown after so many steps."""
        pairs = zip(np.asarray(system_id).tolist(), np.asarray(steps_taken).tolist(), strict=True)
        return np.array([self._steps.get(i) != n for i, n in pairs], bool)

    def state(self) -> dict[str, Int[np.ndarray, " systems"]]:
        """What a checkpoint keeps: ids of systems and their steps."""
        ids, steps = list(self._steps), list(self._steps.values())
        return {"system_id": np.array(ids, np.int64), "steps_taken": np.array(steps, np.int64)}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """The inverse of `state`; None: nothing was shown."""
        self._steps = {}
        if state is not None:
            self.note(state["system_id"], state["steps_taken"])


__all__ = ["BEFORE_MOVING", "Shown", "completed_steps"]
