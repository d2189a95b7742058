"""DynamicsState: everything that a step changes, as one pytree."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Int

from alchemi_jax.hooks.records import RecordBuffer
from alchemi_jax.neighbors import NeighborList
from alchemi_jax.systems.batch import Batch


class DynamicsState(eqx.Module):
    """A run between two steps.

    Attributes:
        batch: the systems, with `status`, `converged`, `steps_taken` and `failed` of each.
        integrator: the algorithm's own state (what its `init_state` made).
        neighbors: of the model; None if it needs none.
        step_count: number of completed steps.
        memory: of each traced hook.
        records: rows of each recording hook that were not yet fetched.
        key: PRNG key of the run.
        newly_converged: [systems], by the last step.  moved: [systems], in the last step.
        failed_at: [systems], the step in which a system failed, -1 otherwise.
        came_from: [systems], the stage that a system left last, -1 while it is in its first.
    """

    batch: Batch
    integrator: Any
    neighbors: NeighborList | None
    step_count: Int[Array, ""]
    memory: tuple[Any, ...]
    records: tuple[RecordBuffer, ...]
    key: Array
    newly_converged: Bool[Array, " systems"]
    moved: Bool[Array, " systems"]
    failed_at: Int[Array, " systems"]
    came_from: Int[Array, " systems"]

    @property
    def overflow(self) -> Any:
        """Whether a neighbor list was too small: the state after it must not be used."""
        return self.neighbors.overflow if self.neighbors is not None else False

    def replace(self, **fields: Any) -> "DynamicsState":
        """The state with some fields changed."""
        return dataclasses.replace(self, **fields)


class StepCarry(eqx.Module):
    """A step on its way: the state so far, where the step began, and the systems that it moves."""

    state: DynamicsState
    start: Batch
    start_integrator: Any
    active: Bool[Array, " systems"]
    unbuilt: bool = eqx.field(static=True, default=False)
    """The neighbor list was never built."""

    def put(self, **fields: Any) -> "StepCarry":
        """The flow with some fields of its state changed."""
        return dataclasses.replace(self, state=dataclasses.replace(self.state, **fields))
