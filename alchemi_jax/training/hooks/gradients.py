"""Hooks between gradients and parameters: ClipGradientsHook, SkipNonFiniteHook, EMAHook."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.hooks.protocol import TracedHook
from alchemi_jax.parameters import fraction, natural, number
from alchemi_jax.training.context import TrainingContext
from alchemi_jax.training.stage import TrainingStage
from alchemi_jax.training.state import Average, all_finite


class ClipGradientsHook(TracedHook):
    """Scales the gradients down if their norm over all parameters is larger than a limit. Traced, at
    BEFORE_OPTIMIZER_STEP.

    Args:
        limit: the largest norm over all parameters.
    """

    limit: Float[Array, ""] = eqx.field(converter=number("limit"))
    frequency: int = 1
    stage: TrainingStage = TrainingStage.BEFORE_OPTIMIZER_STEP

    def __call__(self, ctx: TrainingContext, stage: Any) -> TrainingContext:
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(jnp.abs(g))) for g in jax.tree.leaves(ctx.gradients)))
        factor = self.limit / jnp.maximum(norm, self.limit)
        clipped = jax.tree.map(lambda g: g * factor.astype(g.dtype), ctx.gradients)
        return dataclasses.replace(ctx, gradients=clipped)


class SkipNonFiniteHook(TracedHook):
    """Skips steps in which the loss or a gradient is not finite. Traced, at AFTER_BACKWARD.

    Such a step does not count: parameters, optimizer and step count do not change, and the next batch
    follows. Without this hook the training ends with an error that names the batch.

    Args:
        most: largest number of steps in a row that are skipped; with one more the training ends with the
            error.
    """

    most: int = eqx.field(static=True, converter=natural("most"), default=10)
    frequency: int = 1
    stage: TrainingStage = TrainingStage.AFTER_BACKWARD

    def init(self, batch: Any) -> Int[Array, ""]:
        return jnp.zeros((), jnp.int32)

    def __call__(self, ctx: TrainingContext, stage: Any) -> TrainingContext:
        bad = ~all_finite(ctx.loss, ctx.gradients)
        count = jnp.where(bad, ctx.memory + 1, 0)
        return ctx.skip(bad & (count <= self.most)).with_memory(count)


class EMAHook(TracedHook):
    """Averages the parameters over the steps, with weights that fall exponentially. Traced, at
    AFTER_OPTIMIZER_STEP.

    `trainer.averaged(state)` is the model with the average; validations use it, too. After n steps the weight
    of the average so far is at most (1 + n) / (10 + n), so that early steps are soon forgotten.

    Args:
        decay: weight of the average so far in each step, from 0 to 1.
    """

    decay: Float[Array, ""] = eqx.field(converter=fraction("decay"), default=0.999)
    frequency: int = 1
    stage: TrainingStage = TrainingStage.AFTER_OPTIMIZER_STEP

    def init_params(self, params: Any) -> Average:
        """The initial memory: the parameters themselves."""
        return Average(jax.tree.map(jnp.array, params), jnp.zeros((), jnp.int32))

    def __call__(self, ctx: TrainingContext, stage: Any) -> TrainingContext:
        memory = ctx.memory
        # The leaves of the model that are trained.
        present = jax.tree.map(lambda old, new: new, memory.params, ctx.model, is_leaf=lambda x: x is None)
        count = memory.count.astype(self.decay.dtype)
        weight = jnp.minimum(self.decay, (1 + count) / (10 + count))

        def average(old: Any, new: Any) -> Any:
            return old + (1 - weight).astype(old.dtype) * (new - old)

        kept = jax.tree.map(
            lambda old, new: None if old is None else average(old, new),
            memory.params,
            present,
            is_leaf=lambda x: x is None,
        )
        return ctx.with_memory(Average(kept, memory.count + 1))


__all__ = ["ClipGradientsHook", "EMAHook", "SkipNonFiniteHook"]
