"""A hook with a memory of each system, for tests in which systems move from row to row."""

import jax.numpy as jnp

from alchemi_jax.dynamics import DynamicsStage
from alchemi_jax.hooks import TracedHook
from alchemi_jax.levels import PerSystem


class Counting(TracedHook):
    """Counts the steps of each system in its memory, and pulls the forces by as much."""

    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 1

    def init(self, batch):
        return PerSystem(jnp.zeros(batch.system_capacity, batch.dtype))

    def __call__(self, ctx, stage):
        seen = ctx.memory.value + ctx.active_mask
        scale = jnp.take(1 + 1e-3 * seen, ctx.batch.batch_idx, mode="clip")
        return ctx.with_batch(forces=ctx.batch.forces * scale[:, None]).with_memory(PerSystem(seen))
