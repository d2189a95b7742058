"""HookContext: what a hook sees, of whichever kind and in whichever workflow."""

import dataclasses
from typing import Any, TypeVar

import equinox as eqx

from alchemi_jax.systems.batch import Batch


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
