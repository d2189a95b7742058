"""Which state of each system a hook has shown, and how many steps that state has behind it."""

from collections.abc import Iterable
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
    if not isinstance(stage, DynamicsStage):
        # In another workflow the systems take no steps: those of the run count.
        return jnp.full_like(steps, jnp.asarray(ctx.step_count, steps.dtype) + 1)
    if stage in BEFORE_MOVING or stage is DynamicsStage.ON_CONVERGE:
        return steps
    return steps + jnp.asarray(ctx.active_mask).astype(steps.dtype)


class Shown:
    """Which state of each system a hook has shown last, so that none is shown twice."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        #: Steps of systems whose last state was shown: at the end of a run, and of the one that goes on from
        #: it.
        self._ended: dict[int, int] = {}
        self._ended_before: dict[int, int] = {}

    def note(self, system_id: Any, steps_taken: Any) -> None:
        """These systems were shown after so many steps."""
        self._steps.update(_pairs(system_id, steps_taken))

    def note_ended(self, system_id: Any, steps_taken: Any) -> None:
        """These systems end after so many steps, and that state was shown."""
        self._ended.update(_pairs(system_id, steps_taken))

    def is_new(self, system_id: Any, steps_taken: Any) -> Bool[np.ndarray, " systems"]:
        """[systems] Those that were not shown after so many steps."""
        return np.array([self._steps.get(i) != n for i, n in _pairs(system_id, steps_taken)], bool)

    def is_again(self, system_id: Any, steps_taken: Any) -> Bool[np.ndarray, " systems"]:
        """[systems] Those in the state with which they ended in an earlier run, where it was shown: with more
        steps they begin with it."""
        if not self._ended_before:
            return np.zeros(np.shape(system_id), bool)
        before = self._ended_before
        return np.array([before.get(i) == n for i, n in _pairs(system_id, steps_taken)], bool)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: ids of systems and their steps, also of those that have ended."""
        return _arrays(self._steps) | {"ended": _arrays(self._ended)}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """The inverse of `state`; None: nothing was shown."""
        self._steps, self._ended, self._ended_before = {}, {}, {}
        if state is not None:
            self.note(state["system_id"], state["steps_taken"])
            ended = state.get("ended") or _arrays({})
            self.note_ended(ended["system_id"], ended["steps_taken"])
            self._ended_before = dict(self._ended)


def _pairs(system_id: Any, steps_taken: Any) -> Iterable[tuple[int, int]]:
    return zip(np.asarray(system_id).tolist(), np.asarray(steps_taken).tolist(), strict=True)


def _arrays(steps: dict[int, int]) -> dict[str, Int[np.ndarray, " systems"]]:
    ids, values = list(steps), list(steps.values())
    return {"system_id": np.array(ids, np.int64), "steps_taken": np.array(values, np.int64)}


__all__ = ["BEFORE_MOVING", "Shown", "completed_steps"]
