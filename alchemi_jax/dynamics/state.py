"""DynamicsState, everything that a step changes, and StepCarry, what a step carries from phase to phase."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.origin import UNKNOWN, Origin
from alchemi_jax.dynamics.rescue import RescueState
from alchemi_jax.hooks.records import RecordBuffer
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Data, without_arrays


class DynamicsState(eqx.Module):
    """A run between two steps.

    Attributes:
        batch: the systems, with their `status`, `outcome`, `converged`, `steps_taken`, ...
        integrator: state of the algorithm, from its `init_state`; a tuple with one per part for a pipeline.
        neighbors: neighbor list of the model; None for a model without one.
        step_count: number of completed steps.
        memory: memories of the traced hooks, in order.
        records: rows of each recording hook that were not yet written.
        key: PRNG key of the run.
        fresh: [systems], True if not evaluated yet: the next pass evaluates them and does not move them.
        newly_converged: [systems], True if converged in the last step.
        converged_at_start: [systems], True if converged at the first evaluation; ON_CONVERGE follows in the
            next step.
        moved: [systems], True if the last step moved them.
        entering: [systems], True if the next step is the first in another part of the pipeline.
        came_from: [systems], the part that a system left last, -1 while it is in its first.
        time_error: [systems], rounding error of `batch.time`, fs.
        rescue: copies of the systems, and factors on their time steps; None without a `Rescue`.
        origin: the engine that made the state, if it is known; for messages.
    """

    batch: Batch
    integrator: Any
    neighbors: NeighborList | None
    step_count: Int[Array, ""]
    memory: tuple[Any, ...]
    records: tuple[RecordBuffer, ...]
    key: PRNGKeyArray
    fresh: Bool[Array, " systems"]
    newly_converged: Bool[Array, " systems"]
    converged_at_start: Bool[Array, " systems"]
    moved: Bool[Array, " systems"]
    entering: Bool[Array, " systems"]
    came_from: Int[Array, " systems"]
    time_error: Float[Array, " systems"]
    rescue: RescueState | None = None
    origin: Origin = without_arrays(default=UNKNOWN)

    @property
    def overflow(self) -> Any:
        """Whether a capacity was too small. Such a state must not be used."""
        overflow: Any = self.neighbors.overflow if self.neighbors is not None else False
        for buffer in self.records:
            overflow = overflow | buffer.overflow
        return overflow

    def replace(self, **fields: Any) -> "DynamicsState":
        """The state with some fields changed."""
        return dataclasses.replace(self, **fields)


#: Fields of a state with a row per system, and what a system that enters has there.
FLAGS: dict[str, Any] = {
    "fresh": True,
    "newly_converged": False,
    "converged_at_start": False,
    "moved": False,
    "entering": False,
    "came_from": -1,
    "time_error": 0.0,
}


class StepCarry(eqx.Module):
    """A step between two of its phases.

    Attributes:
        state: so far.
        start, start_integrator: batch and algorithm state when the step began; failed systems go back there.
        code: [systems], the part of the pipeline in which each system began the step.
        active: [systems], those that this step moves.
        fresh: [systems], those that it evaluates and does not move; None where there can be none.
        is_step: whether this is a step, or a pass that only evaluates.
    """

    state: DynamicsState
    start: Batch
    start_integrator: Any
    code: Int[Data, " systems"]
    active: Bool[Data, " systems"]
    fresh: Bool[Array, " systems"] | None
    is_step: Bool[Data, ""]

    @property
    def memory(self) -> tuple[Any, ...]:
        """Of each traced hook."""
        return self.state.memory

    @property
    def records(self) -> tuple[RecordBuffer, ...]:
        """Of each recording hook."""
        return self.state.records

    @property
    def step_count(self) -> Int[Array, ""]:
        """Number of completed steps."""
        return self.state.step_count

    @property
    def evaluated(self) -> Bool[Array, " systems"]:
        """[systems] Those that get new energies and forces."""
        return self.active if self.fresh is None else self.active | self.fresh

    def update(self, **fields: Any) -> "StepCarry":
        """The carry with some fields of its state changed."""
        return dataclasses.replace(self, state=dataclasses.replace(self.state, **fields))


__all__ = ["FLAGS", "DynamicsState", "StepCarry"]
