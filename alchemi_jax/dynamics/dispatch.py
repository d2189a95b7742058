"""Calling the hooks of a stage inside a step: traced ones, rows for the recording ones, and in a loop of the
user's own the host hooks."""

from typing import TYPE_CHECKING, Any

import jax

from alchemi_jax.dynamics.callbacks import call_from_device
from alchemi_jax.dynamics.groups import Group, in_order
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.hooks import records
from alchemi_jax.hooks.set import runs_on
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import select
from alchemi_jax.systems.segments import to_atoms


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def dispatch(engine: "AbstractDynamics", flow: StepCarry, stage: DynamicsStage) -> StepCarry:
    """Traced hooks of a stage, then rows for the recording ones."""
    groups = in_order(engine.groups, stage)
    for group in groups:
        if group.hooks.any_traced(stage):
            flow = _transformed(engine, flow, stage, group)
    # `init` evaluates before there are buffers.
    if flow.state.records:
        for group in groups:
            flow = _recorded(engine, flow, stage, group)
    # The driver takes host hooks off what it compiles and calls them itself; they are here
    # when a user embeds `step` or `loop` in code of their own.
    call_from_device(engine, flow, stage)
    return flow


def _transformed(
    engine: "AbstractDynamics", flow: StepCarry, stage: DynamicsStage, group: Group
) -> StepCarry:
    mine, memory = group.mine(flow), flow.state.memory

    def call(operands: tuple[Batch, tuple]) -> tuple[Batch, tuple]:
        batch, memories = operands
        ctx = engine._build_context(flow.put(batch=batch), stage, group)
        ctx, memories = group.hooks.run_traced(ctx, stage, memories)
        return select(to_atoms(batch, mine), mine, ctx.batch, batch), memories

    operands = (flow.state.batch, group.memories(memory))
    called = group.called(flow, stage)
    if called is None:
        batch, memories = call(operands)
    else:
        batch, memories = jax.lax.cond(called, call, lambda o: o, operands)
    end = group.memory + len(memories)
    return flow.put(batch=batch, memory=(*memory[: group.memory], *memories, *memory[end:]))


def _recorded(engine: "AbstractDynamics", flow: StepCarry, stage: DynamicsStage, group: Group) -> StepCarry:
    buffers = list(flow.state.records)
    for i, held in enumerate(group.hooks.recording, group.records):
        if runs_on(held.hook, stage):
            due: Any = group.called(flow, stage)
            if held.hook.frequency > 1:
                at = flow.state.step_count % held.hook.frequency == 0
                due = at if due is None else due & at
            ctx = engine._build_context(flow, stage, group)
            buffers[i] = records.append(held.hook, buffers[i], ctx, True if due is None else due)
    return flow.put(records=tuple(buffers))
