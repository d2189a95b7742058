"""HookContext: the argument of all hooks, of each kind and in each workflow."""

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


_C = TypeVar("_C", bound="HookContext")

if TYPE_CHECKING:
    SeenBatch = Batch
else:
    # Host hooks see a HostBatch. For the type checker both are alike: they have the same fields.
    SeenBatch = Batch | HostBatch


class HookContext(eqx.Module):
    """What a hook gets: a pytree with JAX arrays for traced and recording hooks, with numpy arrays without
    padding for host hooks.

    Fields that a workflow does not have are None. Subclass it to add fields.

    Attributes:
        batch: the systems.
        step_count: number of completed steps, zero in the first.
        model: the model of the workflow.
        converged_mask: [systems], the systems that converged in this step (at ON_CONVERGE).
        active_mask: [systems], the systems that this call moves. Changes to others are undone.
        stages: numbers of the parts of a pipeline that the hook belongs to; None: all.
        memory: the memory of this traced hook, from its `init` or its last call.
        workflow: the engine, trainer or other object that calls the hooks.
        global_rank, world_size: the rank of this process, from 0, and the number of processes.
        loss, losses, optimizer, lr_scheduler, gradients, epoch: fields of a training workflow; `losses` has
            the parts of the loss by name.
    """

    batch: SeenBatch
    step_count: Any = None
    model: Any = None
    converged_mask: Any = None
    loss: Any = None
    optimizer: Any = None
    lr_scheduler: Any = None
    gradients: Any = None
    epoch: Any = None
    global_rank: Any = None
    workflow: Any = None
    active_mask: Any = None
    stages: tuple[int, ...] | None = eqx.field(static=True, default=None)
    memory: Any = None
    losses: Any = None
    world_size: Any = None

    def with_batch(self: _C, **fields: Any) -> _C:
        """The context with some fields or extras of the batch changed.

        Raises:
            KeyError: for an unknown name.
        """
        return dataclasses.replace(self, batch=self.batch.replace(**fields))

    def with_memory(self: _C, memory: Any) -> _C:
        """The context with a new memory for this traced hook."""
        return dataclasses.replace(self, memory=memory)

    def stop(self: _C, mask: Bool[Array, " systems"], reason: int = 0) -> _C:
        """The context with some systems stopped: they are finished, neither converged nor failed.

        A system that is stopped before the update of a step does not move any more; if it is stopped later in
        a step, it ends with that step. Finished systems, and systems that this call does not move, do not
        change.

        Args:
            mask: [systems], the systems to stop.
            reason: index of the text in the `reasons` of the hook.
        """
        batch = self.batch
        stopped = self._unfinished(mask)
        return self.with_batch(
            outcome=jnp.where(stopped, jnp.int32(Outcome.STOPPED), batch.outcome),
            reason=jnp.where(stopped, jnp.int32(reason), batch.reason),
        )

    def fail(self: _C, mask: Bool[Array, " systems"], reason: int = 0) -> _C:
        """The context with some systems failed: they return to the state at the beginning of the step and
        stay in it.

        Args:
            mask: [systems], the systems that failed.
            reason: index of the text in the `reasons` of the hook.
        """
        batch = self.batch
        failed = self._unfinished(mask)
        return self.with_batch(
            failed=batch.failed | failed, reason=jnp.where(failed, jnp.int32(reason), batch.reason)
        )

    def _unfinished(self, mask: Bool[Array, " systems"]) -> Bool[Array, " systems"]:
        unfinished = jnp.asarray(mask) & (self.batch.outcome == Outcome.RUNNING) & self.batch.system_mask
        return unfinished if self.active_mask is None else unfinished & self.active_mask


__all__ = ["HookContext", "SeenBatch"]
