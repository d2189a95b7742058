"""HookContext: what a hook sees, of whichever kind and in whichever workflow."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.outcome import Outcome


_C = TypeVar("_C", bound="HookContext")


class HookContext(eqx.Module):
    """One pytree for traced hooks (JAX arrays) and host hooks (numpy arrays without padding).

    A workflow fills in what it has; the rest is None. Subclass it to add fields.

    Attributes:
        batch: the systems.
        step_count: number of completed steps, zero in the first.
        model: the model of the workflow.
        converged_mask: [systems], those that newly converged in this step (ON_CONVERGE).
        active_mask: [systems], those that this dispatch moves; the others are frozen.
        stages: of a hook that belongs to some stages of a pipeline, their codes; None: to the whole.
        memory: of this hook alone (traced hooks): what its `init` made or its last call left.
        workflow: the engine, or whatever dispatches.
        loss, optimizer, lr_scheduler, gradients, epoch, global_rank: of a training workflow.
    """

    batch: Batch
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

    def with_batch(self: _C, **fields: Any) -> _C:
        """The context with some fields of the batch changed; an unknown name is an error."""
        return dataclasses.replace(self, batch=self.batch.replace(**fields))

    def with_memory(self: _C, memory: Any) -> _C:
        """The context with a new memory for this hook."""
        return dataclasses.replace(self, memory=memory)

    def stop(self: _C, mask: Bool[Array, " systems"], reason: int = 0) -> _C:
        """The context with some systems stopped: neither converged nor failed, and final.

        A system that is stopped before the update of a step does not move any more; later in a step, it ends
        with that step. Systems that are finished, or that this call does not move, stay as they are.

        Args:
            mask: [systems].
            reason: number of the text in the hook's `reasons`.
        """
        batch = self.batch
        stopped = self._unfinished(mask)
        return self.with_batch(
            outcome=jnp.where(stopped, jnp.int32(Outcome.STOPPED), batch.outcome),
            reason=jnp.where(stopped, jnp.int32(reason), batch.reason),
        )

    def fail(self: _C, mask: Bool[Array, " systems"], reason: int = 0) -> _C:
        """The context with some systems failed: each goes back to the state in which the step began, and
        stays there. Arguments as of `stop`."""
        batch = self.batch
        failed = self._unfinished(mask)
        return self.with_batch(
            failed=batch.failed | failed, reason=jnp.where(failed, jnp.int32(reason), batch.reason)
        )

    def _unfinished(self, mask: Bool[Array, " systems"]) -> Bool[Array, " systems"]:
        going = jnp.asarray(mask) & (self.batch.outcome == Outcome.RUNNING) & self.batch.system_mask
        return going if self.active_mask is None else going & self.active_mask
