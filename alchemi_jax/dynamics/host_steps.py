"""When host hooks are due: in steps of the run, or in steps of each system (`own_steps`).

In a batch that systems enter at different times, the steps of a system are not those of the run. The driver
ends segments where a hook is due for any system.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.hooks.calls import Due
from alchemi_jax.hooks.host_calls import host_hooks
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.levels import Data


#: Systems enter a refilled batch at steps that are multiples of a number that is no larger.
MOST = 16


class _Progress(NamedTuple):
    """What the host knows of each system between two steps; numpy arrays [systems].

    `taken` steps; `unfinished`: the next step moves it; `waits`: it waits for ON_CONVERGE in the next step;
    `moved` and `converged`: in the last step.
    """

    taken: Int[np.ndarray, " systems"]
    unfinished: Bool[np.ndarray, " systems"]
    waits: Bool[np.ndarray, " systems"]
    moved: Bool[np.ndarray, " systems"]
    converged: Bool[np.ndarray, " systems"]


class HostSteps:
    """Which host hooks are due before the next step of a state, or after its last one.

    Args:
        engine: with all its hooks.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.any_own = any(_counts_own(hook) for hook in host_hooks(engine.groups))
        self._state: DynamicsState | None = None
        self._progress: _Progress | None = None

    def put(self, state: DynamicsState) -> None:
        """Continue from this state."""
        self._state, self._progress = state, None

    def due(self, stage: DynamicsStage, step: int) -> Due:
        """For each hook whether it is due at a stage of a step, or for which systems.

        Args:
            stage: AFTER_STEP and ON_CONVERGE are those of the last step, others those of the next.
            step: number of steps of the run before that step.
        """

        def due(hook: Any) -> Any:
            if not _counts_own(hook):
                return step % hook.frequency == 0
            now = self._read()
            alone = self.engine.n_stages == 1
            # In a single engine a system that waits is finished, and is seen in the step in which it is
            # announced. In a pipeline it is seen when it moves on.
            if stage is DynamicsStage.ON_CONVERGE:
                return now.converged & ((now.taken - now.moved) % hook.frequency == 0)
            if stage is DynamicsStage.AFTER_STEP:
                seen = now.moved | now.converged if alone else now.moved
                return seen & ((now.taken - now.moved) % hook.frequency == 0)
            seen = now.unfinished | now.waits if alone else now.unfinished
            return seen & (now.taken % hook.frequency == 0)

        return due

    def any_moves(self) -> bool:
        """Whether the next pass is a step, and does not only evaluate systems that have entered."""
        now = self._read()
        return bool(np.any(now.unfinished | now.waits))

    def any_due(self, hooks: Iterable[Any], step: int) -> bool:
        """Whether any of the hooks is due at a stage of the next step."""
        due = self.due(DynamicsStage.BEFORE_STEP, step)
        return any(np.any(due(hook)) for hook in hooks)

    def following(self, step: int, before: Iterable[Any], after: Iterable[Any]) -> list[int]:
        """For each hook the next number of completed steps after `step` at which it must be called.

        Args:
            before: hooks to call before a step, or in it. `after`: to call after it.
        """
        # A hook after the step s is called when s + 1 steps are complete.
        later = [step + hook.frequency - self._least(hook, step, 0) for hook in before]
        return later + [step + self._least(hook, step, 1) + 1 for hook in after]

    def _least(self, hook: Any, step: int, ahead: int) -> int:
        """Of all systems the largest number of steps since the hook was due (`ahead` 0), or the least until
        it is due (1), now included."""
        f = hook.frequency
        taken: Any = np.array([step])
        if _counts_own(hook):
            now = self._read()
            # A system that waits moves from the step after the next one on.
            taken = (now.taken - now.waits)[now.unfinished | now.waits]
            taken = taken if len(taken) else np.array([step])
        return int((-taken % f).min()) if ahead else int((taken % f).max())

    def _read(self) -> _Progress:
        if self._progress is None:
            state = self._state
            assert state is not None
            batch = state.batch
            taken, status, real, fresh, waits, moved, converged = jax.device_get(
                (
                    *(batch.steps_taken, batch.status, batch.system_mask, state.fresh),
                    *(state.converged_at_start, state.moved, state.newly_converged),
                )
            )
            unfinished = (status < self.engine.exit_status) & real & ~waits & ~fresh
            self._progress = _Progress(taken, unfinished, waits, moved, converged)
        return self._progress


def _counts_own(hook: Any) -> bool:
    """Whether the frequency of a hook counts the steps of each system, and matters."""
    return bool(flag(hook, "own_steps")) and hook.frequency > 1


def entry_unit(engine: Engine) -> int:
    """Systems enter a refilled batch at multiples of so many steps, so that hooks which follow the steps of
    each system are due for many of them together: each time ends a segment."""
    own = [hook.frequency for hook in host_hooks(engine.groups) if _counts_own(hook)]
    common = math.gcd(*own)
    return max((n for n in range(1, MOST + 1) if common % n == 0), default=1) if own else 1


def code_of_last_step(engine: Engine, state: DynamicsState) -> Int[np.ndarray, " systems"]:
    """The part of the pipeline in which each system began the last step.

    On the host: the device is busy with the next segment.
    """
    batch = state.batch
    status, steps, came_from = jax.device_get((batch.status, batch.stage_steps, state.came_from))
    left = (status == engine.exit_status) | (steps == 0)
    return np.where(left & (came_from >= 0), came_from, status)


def carry_between_steps(
    state: DynamicsState, active: Bool[Data, " systems"], code: Int[Data, " systems"]
) -> StepCarry:
    """A carry for host hooks between steps."""
    is_step: Any = np.ones((), bool)
    return StepCarry(state, state.batch, None, code, active, None, is_step)


__all__ = ["MOST", "HostSteps", "carry_between_steps", "code_of_last_step", "entry_unit"]
