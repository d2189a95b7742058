"""Hooks that change the forces: MaxForceClampHook and BiasedPotentialHook."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.models.base import per_volume, strained_gradient
from alchemi_jax.parameters import Parameter, natural, number
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import force_norms


class MaxForceClampHook(TracedHook):
    """Shortens forces that are longer than a limit, keeping their direction. Traced, at AFTER_COMPUTE.

    Reads and writes `forces`, in the first evaluation too. Use it for structures in which atoms are too close
    to one another. Shortened forces are not the gradient of the energy. Costs one pass over the atoms.

    Args:
        limit: largest norm of a force, eV/Å.

    Raises:
        ValueError: if the limit is not positive.
    """

    limit: Parameter = eqx.field(converter=number("limit"))
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        norm = force_norms(ctx.batch)
        limit = self.limit.astype(norm.dtype)
        factor = jnp.where(norm > limit, limit / jnp.where(norm > 0, norm, 1), 1)
        return ctx.with_batch(forces=ctx.batch.forces * factor[:, None])


class BiasedPotentialHook(TracedHook):
    """Adds a bias energy to that of the model: a restraint, an umbrella, metadynamics. Traced.

    At AFTER_COMPUTE, in the first evaluation too, it reads and writes `energy`, `forces` and, where it was
    evaluated, `stress`, by the gradient of the bias. With `deposit` it is called at AFTER_STEP too and
    changes its memory there. Costs the bias and its gradient.

    Args:
        bias: differentiable function of the batch that gives the energy of each system, [systems], eV; with
            `memory`, a function of batch and memory.
        memory: the memory before the first step, a pytree of arrays. Arrays with a row per system are wrapped
            in `alchemi_jax.levels.PerSystem`, or are fields of a Module that declares them.
        deposit: function of batch and memory that gives the new memory, called after the steps 0,
            every, 2 every, ...
        every: number of steps from one deposit to the next.

    The bias is part of the compiled code, so every new lambda recompiles. Write a bias with numbers that
    change as an eqx.Module with a `__call__`.
    """

    bias: Callable[..., Float[Array, " systems"]]
    memory: Any = None
    deposit: Callable[[Batch, Any], Any] | None = None
    every: int = 1
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE

    def __check_init__(self):
        if not callable(self.bias):
            raise TypeError(
                f"bias of BiasedPotentialHook must be a function of the batch, not {self.bias!r}."
            )
        if self.deposit is not None and not callable(self.deposit):
            raise TypeError(f"deposit of BiasedPotentialHook must be a function, not {self.deposit!r}.")
        if self.deposit is not None and self.memory is None:
            raise ValueError("BiasedPotentialHook with deposit needs a memory to begin with.")
        natural("every of BiasedPotentialHook")(self.every)

    def _runs_on_stage(self, stage: Any) -> bool:
        deposits = self.deposit is not None and stage is DynamicsStage.AFTER_STEP
        return stage is DynamicsStage.AFTER_COMPUTE or deposits

    def init(self, batch: Batch) -> Any:
        return self.memory

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        if stage is DynamicsStage.AFTER_STEP:
            deposit = self.deposit
            assert deposit is not None
            due = ctx.step_count % self.every == 0
            new = jax.lax.cond(due, lambda m: deposit(ctx.batch, m), lambda m: m, ctx.memory)
            return ctx.with_memory(new)
        batch = ctx.batch
        extra = () if self.memory is None else (ctx.memory,)

        def bias(strained: Batch) -> Float[Array, " systems"]:
            energy = jnp.asarray(self.bias(strained, *extra))
            if energy.shape != batch.energy.shape or not jnp.issubdtype(energy.dtype, jnp.floating):
                raise TypeError(
                    f"the bias of BiasedPotentialHook gives {energy.dtype}{list(energy.shape)}, expected one "
                    f"energy per system, {batch.dtype}{list(batch.energy.shape)}."
                )
            return energy

        energy, slope, virial = strained_gradient(batch, bias)
        free = batch.atom_mask[:, None] & batch.free_components
        return ctx.with_batch(
            energy=batch.energy + energy,
            forces=batch.forces - jnp.where(free, slope, 0),
            # NaN, where there is no stress, remains NaN.
            stress=batch.stress + per_volume(batch, virial),
        )


__all__ = ["BiasedPotentialHook", "MaxForceClampHook"]
