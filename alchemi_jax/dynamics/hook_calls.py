"""How the hooks of a step are called: whom a call concerns, and what of it is kept."""

import dataclasses
from enum import Enum
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.dynamics.fail import fail, find_lost
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import field_reason, hook_field_reason, hook_reason
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.dynamics.status import within
from alchemi_jax.hooks.calls import due_at
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.hooks.dispatch import Dispatcher
from alchemi_jax.hooks.groups import Group
from alchemi_jax.hooks.protocol import TracedHook, flag, runs_on
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import map_by_level, select
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.systems.segments import to_atoms


#: Hooks of these stages shape the first evaluation of a system, too.
SHAPES_FORCES = (DynamicsStage.BEFORE_COMPUTE, DynamicsStage.AFTER_COMPUTE)
#: A system that is stopped here does not move in this step.
_BEFORE_MOVING = (DynamicsStage.BEFORE_STEP, DynamicsStage.BEFORE_PRE_UPDATE)
#: Stages in which a stopped system is finished at once; in the others the end of the step sees to it.
_STOPS_AT_ONCE = (*_BEFORE_MOVING, DynamicsStage.ON_CONVERGE)


class StepDispatcher(Dispatcher[StepCarry]):
    """Hooks of an engine: of what a traced hook returns, the rows of systems that the step moves are kept."""

    def __init__(self, engine: Engine):
        self.engine, self.groups = engine, engine.groups

    def context(self, carry: StepCarry, stage: Any, group: Group) -> HookContext:
        return self.engine._build_context(carry, stage, group)

    def condition(self, carry: StepCarry, stage: Enum, group: Group) -> Bool[Array, ""] | None:
        if stage is DynamicsStage.ON_CONVERGE:
            return jnp.any(within(group, carry.state.newly_converged, carry.code))
        if group.codes is None:
            return None
        evaluated = stage in SHAPES_FORCES or stage is DynamicsStage.AFTER_STEP
        return jnp.any(within(group, carry.evaluated if evaluated else carry.active, carry.code))

    def observed(self, carry: StepCarry) -> Bool[Array, ""] | None:
        return None if carry.fresh is None else carry.is_step

    def due_systems(self, carry: StepCarry, hook: Any) -> Bool[Array, " systems"] | None:
        if not flag(hook, "own_steps") or hook.frequency == 1:
            return None
        return carry.start.steps_taken % hook.frequency == 0

    def before(
        self, carry: StepCarry, stage: Enum, group: Group, ctx: Any, number: int, hook: TracedHook
    ) -> tuple[Any, Bool[Array, ""] | None]:
        due = due_at(hook, carry.step_count)
        if carry.fresh is None:
            return ctx, due
        early = None
        if stage in SHAPES_FORCES:
            early = within(group, carry.fresh, carry.code)
        elif stage is DynamicsStage.AFTER_STEP and flag(hook, "judges_convergence"):
            early = within(group, carry.fresh, carry.code) & (ctx.batch.steps_taken == 0)
        if early is None:
            return ctx, due
        # The first evaluation of a system does not wait for the hook's frequency.
        mask = ctx.active_mask if due is None else ctx.active_mask & due
        ctx = dataclasses.replace(ctx, active_mask=mask | early)
        return ctx, None if due is None else due | jnp.any(early)

    def after(
        self,
        carry: StepCarry,
        stage: Enum,
        group: Group,
        given: Any,
        changed: Any,
        number: int,
        hook: TracedHook,
    ) -> Any:
        mask, old = given.active_mask, given.batch
        batch = old
        if changed.batch is not old:
            batch = select(to_atoms(old, mask), mask, changed.batch, old)
            batch = _with_reasons(old, batch, number)
        memory = changed.memory
        if memory is not given.memory and carry.fresh is not None:
            memory = _unless_fresh(carry, given.memory, memory)
        return dataclasses.replace(changed, batch=batch, memory=memory)

    def _swaps(self, stage: Enum) -> bool:
        """Whether a hook of a stage swaps temperatures."""
        hooks = (hook for group in self.groups for hook in group.hooks.traced)
        return any(flag(hook, "swaps_temperatures") and runs_on(hook, stage) for hook in hooks)

    def take_back(self, carry: StepCarry, stage: Enum, values: dict[str, Any]) -> StepCarry:
        before, batch = carry.state.batch, values["batch"]
        carry = carry.update(batch=batch)
        if batch.target_temperature is not before.target_temperature and self._swaps(stage):
            ratio = batch.target_temperature / before.target_temperature
            # Before the first step there is no temperature of a hook, and nothing was swapped.
            factor = jnp.where(jnp.isnan(ratio), 1, jnp.sqrt(ratio))
            carry = carry.update(integrator=self.engine.scale_momenta(carry.state.integrator, factor))
        if batch.failed is not before.failed:
            bad = batch.failed & ~before.failed
            carry = fail(self.engine, carry, bad, batch.reason)
            if stage is DynamicsStage.ON_CONVERGE:
                carry = carry.update(newly_converged=carry.state.newly_converged & ~bad)
        if batch.outcome is not before.outcome and stage in _STOPS_AT_ONCE:
            stopped = carry.active & (batch.outcome == Outcome.STOPPED)
            now = carry.state.batch
            status = jnp.where(stopped, jnp.int32(self.engine.exit_status), now.status)
            carry = carry.update(batch=now.replace(status=status))
            if stage in _BEFORE_MOVING:
                carry = dataclasses.replace(carry, active=carry.active & ~stopped)
                carry = carry.update(moved=carry.active)
        return carry


def _with_reasons(old: Batch, new: Batch, number: int) -> Batch:
    """A batch after a hook in which whatever failed or stopped by it is marked, with the reason.

    Which fields the hook changed is known while tracing: what it leaves alone costs nothing.
    """
    running = (old.outcome == Outcome.RUNNING) & ~old.failed
    failed, outcome, reason = old.failed, old.outcome, old.reason
    if new.failed is not old.failed:
        now = running & new.failed & ~old.failed
        failed, reason = failed | now, jnp.where(now, hook_reason(number, new.reason), reason)
    if new.outcome is not old.outcome:
        now = running & (new.outcome == Outcome.STOPPED)
        outcome = jnp.where(now, new.outcome, outcome)
        reason = jnp.where(now, hook_reason(number, new.reason), reason)
    lost = find_lost(old, new)
    if lost is not None:
        # Also of a system that was stopped, or has converged, in this very step: all of it stays finite.
        now = lost[0] & ~failed
        shift = hook_field_reason(number, "energy") - field_reason("energy")
        failed, reason = failed | now, jnp.where(now, lost[1] + shift, reason)
    return new.replace(failed=failed, outcome=outcome, reason=reason)


def _unless_fresh(carry: StepCarry, old: Any, new: Any) -> Any:
    """A memory in which the rows of fresh systems, and in a pass that is no step everything, stayed."""
    fresh = carry.fresh
    assert fresh is not None
    masks = {"system": fresh, "atom": to_atoms(carry.start, fresh), "shared": ~carry.is_step}

    def keep(level: str, a: Any, b: Any) -> Any:
        if a is b:
            return a
        mask = masks[level]
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(a) - mask.ndim)), b, a)

    return map_by_level(keep, new, old)


__all__ = ["SHAPES_FORCES", "StepDispatcher"]
