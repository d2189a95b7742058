"""The phases of a step that make copies of systems and put failed systems back to them; see `Rescue`."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import is_rescuable
from alchemi_jax.dynamics.rescue import RESCUES, Copy, RescueState, policy_of
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import level_fields, map_by_level
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.transforms import cond_any


#: Fields of a batch that a copy leaves out: no step changes them, or they count on.
_LEFT_OUT = frozenset(
    {
        *("numbers", "fixed", "fixed_components", "batch_idx", "pbc", "spin", "atoms_per_system"),
        *("first_atom", "system_id", "failed", "outcome", "reason", "steps_taken", "stage_steps"),
    }
)
#: Flags of the state that a copy has.
_FLAGS = ("entering", "came_from", "time_error")


def new_rescue(state: DynamicsState) -> RescueState:
    """What a run begins with: no copies yet."""
    copy, none = _copy_of(state), jnp.full_like(state.batch.steps_taken, -1)
    return RescueState(copy, copy, none, none, jnp.ones_like(state.batch.energy), none, none, none)


def rescue_failed(engine: Engine, carry: StepCarry) -> StepCarry:
    """Systems that failed in this step go back to their copies, where the rescue of their part says so.

    They count the step, and do not move in it.
    """
    held = carry.state.rescue
    if held is None:
        return carry
    policy, batch = _policies(engine, carry.code), carry.state.batch
    rescued = batch.failed & ~carry.start.failed & (held.older_step >= 0)
    rescued &= batch.system_extras[RESCUES] < policy.tries
    rescued &= is_rescuable(batch.reason, policy.hooks)

    def restore(operands: tuple) -> DynamicsState:
        state, rescued, factor = operands
        return _restore(engine, state, rescued, factor)

    given = _movable(carry.state)
    after = cond_any(jnp.any(rescued), restore, lambda o: o[0], (given, rescued, policy.factor))
    # `moved` stays false: the step took no time, and nothing is recorded of it.
    carry = dataclasses.replace(carry, active=carry.active | rescued)
    return carry.update(**_moved(carry.state, after))


def keep_copies(engine: Engine, carry: StepCarry) -> StepCarry:
    """Copies of systems after their first evaluation, of those that enter a part, and where one is due."""
    held = carry.state.rescue
    if held is None:
        return carry
    state, policy = carry.state, _policies(engine, carry.state.batch.status)
    unfinished = engine.active(state.batch) & (policy.tries > 0)
    first = state.entering if carry.fresh is None else state.entering | carry.fresh
    first &= unfinished
    due = unfinished & carry.active & state.moved & (state.batch.steps_taken % policy.every == 0)

    def take(operands: tuple) -> RescueState:
        state, first, due = operands
        held = state.rescue
        atoms = {name: to_atoms(state.batch, mask) for name, mask in (("first", first), ("due", due))}
        now, steps = _copy_of(state), state.batch.steps_taken
        older = _choose(due, atoms["due"], held.newer, held.older)
        return dataclasses.replace(
            held,
            older=_choose(first, atoms["first"], now, older),
            newer=_choose(first | due, atoms["first"] | atoms["due"], now, held.newer),
            older_step=jnp.where(first, steps, jnp.where(due, held.newer_step, held.older_step)),
            newer_step=jnp.where(first | due, steps, held.newer_step),
        )

    operands = (_movable(state), first, due)
    return carry.update(rescue=cond_any(jnp.any(first | due), take, lambda o: o[0].rescue, operands))


def shortened(engine: Engine, state: DynamicsState) -> Engine:
    """The engine with the steps that rescued systems take."""
    if state.rescue is None:
        return engine
    return engine.shorten_steps(state.batch, state.rescue.factor)


class _Policies(NamedTuple):
    """The rescue of each system, [systems]; no tries where its part has none."""

    tries: Int[Array, " systems"]
    factor: Float[Array, " systems"]
    every: Int[Array, " systems"]
    hooks: Bool[Array, " systems"]


def _policies(engine: Engine, code: Any) -> _Policies:
    found = [policy_of(engine, part) for part in engine.parts]
    columns = [
        [0 if p is None else p.tries for p in found],
        [1.0 if p is None else p.factor for p in found],
        [1 if p is None else p.every for p in found],
        [p is not None and p.hooks for p in found],
    ]
    part = jnp.clip(code, 0, len(found) - 1)
    return _Policies(*(jnp.stack([jnp.asarray(x) for x in column])[part] for column in columns))


def _movable(state: DynamicsState) -> DynamicsState:
    """The state without what copies have nothing to do with, and what is expensive to copy."""
    return state.replace(neighbors=None, records=())


def _moved(state: DynamicsState, after: DynamicsState) -> dict[str, Any]:
    """The fields of a state that a restored one changes."""
    names = ("integrator", "memory", "rescue", *_FLAGS)
    batch = after.batch.with_meta(state.batch.meta)
    return {"batch": batch, **{name: getattr(after, name) for name in names}}


def _restore(
    engine: Engine, state: DynamicsState, rescued: Bool[Array, " systems"], by: Float[Array, " systems"]
) -> DynamicsState:
    held, batch = state.rescue, state.batch
    assert held is not None
    atoms = to_atoms(batch, rescued)
    now = _copy_of(state)
    old = _choose(rescued, atoms, held.older, now)
    factor = jnp.where(rescued, by.astype(held.factor.dtype), 1)

    def merge(level: str, x: Any, y: Any) -> Any:
        return x if y is None else y

    integrator = engine.shorten_state(map_by_level(merge, state.integrator, old.integrator), factor)
    fields = {name: old.atoms[name] for name in old.atoms} | {
        name: value for name, value in old.systems.items() if name not in _FLAGS
    }
    extras: Any = old.systems["system_extras"]
    counted = {**extras, RESCUES: batch.system_extras[RESCUES] + rescued}
    fields |= {
        "system_extras": counted,
        "failed": batch.failed & ~rescued,
        "outcome": jnp.where(rescued, jnp.int32(Outcome.RUNNING), batch.outcome),
        "reason": jnp.where(rescued, 0, batch.reason),
    }
    after = state.replace(
        batch=dataclasses.replace(batch, **fields),
        integrator=integrator,
        memory=map_by_level(merge, state.memory, old.memory),
        **{name: old.systems[name] for name in _FLAGS},
    )
    # Both copies are the restored system, with shorter steps.
    copy = _copy_of(after)
    held = RescueState(
        older=_choose(rescued, atoms, copy, held.older),
        newer=_choose(rescued, atoms, copy, held.newer),
        older_step=held.older_step,
        newer_step=jnp.where(rescued, held.older_step, held.newer_step),
        factor=held.factor * factor,
        failed_in=jnp.where(rescued, batch.steps_taken, held.failed_in),
        back_to=jnp.where(rescued, held.older_step, held.back_to),
        reason=jnp.where(rescued, batch.reason, held.reason),
    )
    return after.replace(rescue=held)


def _copy_of(state: DynamicsState) -> Copy:
    batch, fields = state.batch, {"atom": {}, "system": {}}
    for name, level in level_fields(Batch):
        if name not in _LEFT_OUT and level != "shared":
            fields[level][name] = getattr(batch, name)
    # The number of rescues counts on.
    extras = {k: v for k, v in batch.system_extras.items() if k != RESCUES}
    fields["system"] |= {"system_extras": extras, **{name: getattr(state, name) for name in _FLAGS}}
    return Copy(
        atoms=fields["atom"],
        systems=fields["system"],
        integrator=_without_shared(state.integrator),
        memory=_without_shared(state.memory),
    )


def _without_shared(tree: Any) -> Any:
    return map_by_level(lambda level, x: None if level == "shared" else x, tree)


def _choose(systems: Bool[Array, " systems"], atoms: Bool[Array, " atoms"], new: Copy, old: Copy) -> Copy:
    """The rows of `new` where the masks are true, those of `old` elsewhere."""
    masks = {"system": systems, "atom": atoms}

    def choose(level: str, a: Any, b: Any) -> Any:
        mask = masks[level]
        return jnp.where(mask.reshape(mask.shape + (1,) * (jnp.ndim(a) - mask.ndim)), a, b)

    return map_by_level(choose, new, old)


__all__ = ["keep_copies", "new_rescue", "rescue_failed", "shortened"]
