"""Admission: what a system begins with when it enters another stage of a pipeline.

Its rows of the stage's own state and of the memories of the stage's hooks start afresh, velocities are drawn
where it comes from a relaxation, and forces are renewed where hooks of a stage shape them. Nobody else's
rows are touched. It happens at the beginning of the first step in the new stage, so that observers
of the step before have seen the system as it left.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from alchemi_jax.dynamics.stage import STEP, DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.updates import stage_key
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import declares_levels, level_fields, select
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.transforms import cond_any


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def enter_stage(engine: AbstractDynamics, state: DynamicsState) -> DynamicsState:
    """The state in which the systems that enter a stage with this step have what they begin with."""
    if engine.n_stages == 1:
        return state
    batch = state.batch
    arriving = engine.active(batch) & (state.came_from >= 0) & (batch.stage_steps == 0)
    quiet, rest = eqx.partition(engine.on_device(), eqx.is_array)

    # What is dear to copy, the neighbor list, goes in and not out.
    def enter(operands: tuple) -> tuple:
        quiet, state, arriving = operands
        after = _enter(eqx.combine(quiet, rest), state, arriving)
        return after.batch, after.integrator, after.memory, after.failed_at

    def stay(operands: tuple) -> tuple:
        _, state, _ = operands
        return state.batch, state.integrator, state.memory, state.failed_at

    held = state.replace(records=(), batch=batch.replace(meta=None))
    batch, integrator, memory, failed_at = cond_any(jnp.any(arriving), enter, stay, (quiet, held, arriving))
    return state.replace(
        batch=batch.replace(meta=state.batch.meta), integrator=integrator, memory=memory, failed_at=failed_at
    )


def _enter(engine: AbstractDynamics, state: DynamicsState, arriving: Array) -> DynamicsState:
    state = state.replace(batch=_begun(engine, state, arriving))
    batch = state.batch
    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        if group.codes is None:
            continue
        fresh = group.within(arriving, batch.status) & ~group.within(arriving, state.came_from)
        for i, new in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = restart_rows(batch, fresh, new, memory[i])
    state = state.replace(memory=tuple(memory))
    if _hooks_shape_forces(engine):
        state = evaluated(engine, state, arriving)
    integrator = []
    for code, (part, old) in enumerate(zip(engine.parts, state.integrator, strict=True)):
        mine = arriving & (batch.status == code)
        integrator.append(select(to_atoms(batch, mine), mine, part.init_state(state.batch), old))
    return state.replace(integrator=tuple(integrator))


def _begun(engine: AbstractDynamics, state: DynamicsState, arriving: Array) -> Batch:
    """Nobody's temperature and pressure but the stage's own; velocities after a relaxation."""
    batch = state.batch
    nothing = jnp.full_like(batch.target_temperature, jnp.nan)
    fresh = batch.replace(target_temperature=nothing, target_pressure=nothing)
    batch = select(to_atoms(batch, arriving), arriving, fresh, batch)
    moving = jnp.array([part._has_velocities for part in engine.parts])
    from_rest = arriving & ~moving[jnp.maximum(state.came_from, 0)]
    for code, part in enumerate(engine.parts):
        if code > 0 and part._has_velocities:
            mine = from_rest & (batch.status == code)
            drawn = part.admit(batch, stage_key(state.key, code))
            batch = select(to_atoms(batch, mine), mine, drawn, batch)
    return batch


def _hooks_shape_forces(engine: AbstractDynamics) -> bool:
    """Whether forces mean another thing in another stage."""
    shaping = (DynamicsStage.BEFORE_COMPUTE, DynamicsStage.AFTER_COMPUTE)
    return any(
        group.hooks.any_traced(stage)
        for group in engine.groups
        for stage in shaping
        if group.codes is not None
    )


def evaluated(engine: AbstractDynamics, state: DynamicsState, arriving: Array) -> DynamicsState:
    """As in `init`: one evaluation with the hooks that shape it, whatever their frequency; their
    memory stands still."""
    compute = STEP.index("compute")
    flow = engine._begin(state.replace(step_count=jnp.zeros_like(state.step_count)))
    flow = dataclasses.replace(flow, active=arriving)
    after = engine._through(flow, STEP[compute - 1 : compute + 2]).state
    failed_at = jnp.where(after.failed_at != state.failed_at, state.step_count, state.failed_at)
    return state.replace(batch=after.batch, failed_at=failed_at)


def restart_rows(batch: Batch, systems: Array, new: Any, old: Any) -> Any:
    """A memory with the rows of some systems started afresh.

    A Module that declares levels is taken by them; of anything else, leaves with a leading axis
    `systems`, or `atoms`.
    """
    atoms = to_atoms(batch, systems) & batch.atom_mask
    if declares_levels(new):
        # What is shared goes on.
        fresh = select(atoms, systems, new, old)
        shared = {name: getattr(old, name) for name, level in level_fields(new) if level == "shared"}
        return dataclasses.replace(fresh, **shared)

    masks = {"system": systems, "atom": atoms}

    def row(a: Array, b: Array) -> Array:
        level = level_by_length(batch, a)
        if level is None:
            return b
        mask = masks[level]
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(a) - 1)), a, b)

    return jax.tree.map(row, new, old)


def level_by_length(batch: Batch, x: Any) -> str | None:
    """Whose rows an array of a memory has that declares no levels: "system", "atom", or None, nobody's."""
    length = jnp.shape(x)[0] if jnp.ndim(x) else None
    levels = {batch.atom_capacity: "atom", batch.system_capacity: "system"}
    return levels.get(length) if length is not None else None
