"""What a system begins with: in its first evaluation, and when it enters a part of a pipeline.

A system enters at the beginning of its first step in the new part, so that observers of the step before see
it as it left. Its rows of the state of the algorithm and of the memories of hooks start from scratch, and
velocities are drawn if it comes from a relaxation. No other rows change.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from alchemi_jax.dynamics.hook_calls import SHAPES_FORCES
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.restore import shortened
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.status import within
from alchemi_jax.dynamics.updates import own_state, stage_key
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import map_by_level, select
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.transforms import cond_any


def enter_parts(engine: Engine, state: DynamicsState) -> DynamicsState:
    """The state in which systems that enter a part of a pipeline have their initial values.

    If hooks of a part change the forces, these systems are marked as fresh, so that forces are computed
    again.
    """
    arriving = engine.active(state.batch) & state.entering & ~state.converged_at_start
    arrays, rest = eqx.partition(engine.on_device(), eqx.is_array)

    # The neighbor list is not returned: it is expensive to copy.
    def enter(operands: tuple) -> tuple:
        arrays, state, arriving = operands
        after = _enter(eqx.combine(arrays, rest), state, arriving)
        return after.batch, after.integrator, after.memory

    def stay(operands: tuple) -> tuple:
        _, state, _ = operands
        return state.batch, state.integrator, state.memory

    given = state.replace(records=())
    batch, integrator, memory = cond_any(jnp.any(arriving), enter, stay, (arrays, given, arriving))
    return state.replace(
        batch=batch.with_meta(state.batch.meta),
        integrator=integrator,
        memory=memory,
        entering=state.entering & ~arriving,
        fresh=state.fresh | arriving if shapes_forces(engine) else state.fresh,
    )


def shapes_forces(engine: Engine) -> bool:
    """Whether forces differ from part to part, because hooks of a part change them."""
    return any(
        group.hooks.any_traced(stage)
        for group in engine.groups
        for stage in SHAPES_FORCES
        if group.codes is not None
    )


def _enter(engine: Engine, state: DynamicsState, arriving: Bool[Array, " systems"]) -> DynamicsState:
    batch = _start_part(engine, state, arriving)
    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        if group.codes is None:
            continue
        new = within(group, arriving, batch.status) & ~within(group, arriving, state.came_from)
        for i, initial in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = restart_rows(batch, new, initial, memory[i])
    integrator = state.integrator
    if not shapes_forces(engine):
        integrator = tuple(
            select(*_masks(batch, arriving & (batch.status == number)), part.init_state(batch), old)
            for number, (part, old) in enumerate(zip(shortened(engine, state).parts, integrator, strict=True))
        )
    return state.replace(batch=batch, memory=tuple(memory), integrator=integrator)


def _start_part(engine: Engine, state: DynamicsState, arriving: Bool[Array, " systems"]) -> Batch:
    """Reset the targets of arriving systems, and draw velocities for those that come from a relaxation."""
    batch = state.batch
    none = jnp.full_like(batch.target_temperature, jnp.nan)
    untargeted = batch.replace(target_temperature=none, target_pressure=none)
    batch = select(*_masks(batch, arriving), untargeted, batch)
    moving = jnp.array([part.has_velocities for part in engine.parts])
    from_rest = arriving & ~moving[jnp.maximum(state.came_from, 0)]
    for number, part in enumerate(engine.parts):
        if number > 0 and part.has_velocities:
            mine = from_rest & (batch.status == number)
            drawn = part.admit(batch, stage_key(state.key, number))
            batch = select(*_masks(batch, mine), drawn, batch)
    return batch


def start_fresh(engine: Engine, carry: StepCarry) -> StepCarry:
    """Make the state of the algorithm for systems that were just evaluated for the first time."""
    if carry.fresh is None:
        return carry
    arrays, rest = eqx.partition(engine.on_device(), eqx.is_array)

    def make(operands: tuple) -> Any:
        arrays, batch, old, fresh = operands
        new = own_state(shortened(eqx.combine(arrays, rest), carry.state), batch)
        return select(*_masks(batch, fresh), new, old)

    operands = (arrays, carry.state.batch, carry.state.integrator, carry.fresh)
    return carry.update(integrator=cond_any(jnp.any(carry.fresh), make, lambda o: o[2], operands))


def start_evaluated(engine: Engine, carry: StepCarry) -> StepCarry:
    """`start_fresh` without asking whether there are such systems. It has derivatives in both directions."""
    assert carry.fresh is not None
    masks = _masks(carry.state.batch, carry.fresh)
    made = own_state(shortened(engine, carry.state), carry.state.batch)
    return carry.update(integrator=select(*masks, made, carry.state.integrator))


def restart_rows(batch: Batch, systems: Bool[Array, " systems"], initial: Any, memory: Any) -> Any:
    """A memory with rows of some systems from `initial`; shared arrays stay as they are."""
    masks = {"system": systems, "atom": to_atoms(batch, systems) & batch.atom_mask}

    def restart(
        level: str, new: Shaped[Array, "*dims"], old: Shaped[Array, "*dims"]
    ) -> Shaped[Array, "*dims"]:
        if level == "shared":
            return old
        mask = masks[level]
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(new) - 1)), new, old)

    return map_by_level(restart, initial, memory)


def _masks(
    batch: Batch, systems: Bool[Array, " systems"]
) -> tuple[Bool[Array, " atoms"], Bool[Array, " systems"]]:
    """Masks over atoms and over systems, the arguments of `select`."""
    return to_atoms(batch, systems), systems


__all__ = ["enter_parts", "restart_rows", "shapes_forces", "start_evaluated", "start_fresh"]
