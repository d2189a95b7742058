"""Systems that fail: finding them, and restoring the state in which the step began."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import FIELDS, TOO_FAR, field_reason
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.bounds import furthest
from alchemi_jax.systems.levels import select
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.systems.segments import any_by_system, max_by_system, to_atoms
from alchemi_jax.transforms import cond_any


def fail(
    engine: Engine,
    carry: StepCarry,
    bad: Bool[Array, " systems"],
    reason: Int[Array, " systems"],
    keep: Bool[Array, " systems"] | None = None,
) -> StepCarry:
    """The carry in which some systems have failed: they are finished, in the state in which the step began.

    Args:
        bad: the systems that fail now.
        reason: why; read where `bad` is true.
        keep: the systems that stay as they are now; by default all except `bad`.
    """
    now, keep = carry.state.batch, ~bad if keep is None else keep
    atoms = to_atoms(now, keep)
    batch = select(atoms, keep, now, carry.start)
    # A failure is final, so these fields come from `now` and not from the start of the step.
    batch = batch.replace(
        failed=now.failed | bad,
        outcome=jnp.where(bad, jnp.int32(Outcome.FAILED), now.outcome),
        reason=jnp.where(bad, reason, now.reason),
        status=jnp.where(bad, jnp.int32(engine.exit_status), now.status),
    )
    integrator = select(atoms, keep, carry.state.integrator, carry.start_integrator)
    carry = dataclasses.replace(
        carry, active=carry.active & ~bad, fresh=None if carry.fresh is None else carry.fresh & ~bad
    )
    return carry.update(batch=batch, integrator=integrator, moved=carry.active)


#: Fields per atom that must be finite after an evaluation; the last one that is not gives the reason.
_OF_ATOMS = ("forces", "velocities", "positions")


#: What `find_lost_results` reads.
_READ = (*_OF_ATOMS, "energy", "cell")


def find_lost_results(batch: Batch) -> tuple[Bool[Array, " systems"], Int[Array, " systems"]]:
    """Systems in which energy, forces, or values from which these were computed, are not finite; and why."""

    def find(arrays: dict[str, Any]) -> Int[Array, " systems"]:
        return _find_reasons(batch.replace(**arrays))

    def find_if_any(arrays: dict[str, Any]) -> Int[Array, " systems"]:
        new = batch.replace(**arrays)
        of_atoms = jnp.abs(new.positions) <= furthest(new.dtype)
        of_atoms &= jnp.isfinite(new.forces) & jnp.isfinite(new.velocities)
        of_systems = jnp.isfinite(new.energy) & jnp.all(jnp.isfinite(new.cell), axis=(1, 2))
        fine = jnp.all(of_atoms) & jnp.all(of_systems)
        return cond_any(~fine, find, lambda _: jnp.zeros(new.energy.shape, jnp.int32), arrays)

    # Nearly always nothing is lost. On a CPU it is quick to see that, and finding the reason of each system
    # takes a tenth of a step of small clusters. On accelerators a condition costs more.
    arrays = {name: batch[name] for name in _READ}
    reason = jax.lax.platform_dependent(arrays, cpu=find_if_any, default=find)
    return reason > 0, reason


def _find_reasons(batch: Batch) -> Int[Array, " systems"]:
    """The reason of each system for `find_lost_results`, 0 where nothing is lost."""
    code = jnp.zeros(batch.atom_capacity, jnp.int32)
    # Positions that are not finite are not beyond any bound, and have a reason of their own.
    away = jnp.any(jnp.abs(batch.positions) > furthest(batch.dtype), axis=-1)
    code = jnp.where(away, TOO_FAR, code)
    for name in _OF_ATOMS:
        lost = ~jnp.all(jnp.isfinite(batch[name]), axis=-1)
        code = jnp.where(lost, field_reason(name), code)
    reason = max_by_system(batch, code, 0)
    lost_energy, lost_cell = ~jnp.isfinite(batch.energy), ~jnp.all(jnp.isfinite(batch.cell), axis=(1, 2))
    reason = jnp.where(lost_energy & (reason == 0), field_reason("energy"), reason)
    return jnp.where(lost_cell, field_reason("cell"), reason)


def find_lost(before: Batch, after: Batch) -> tuple[Bool[Array, " systems"], Int[Array, " systems"]] | None:
    """Systems in which a field is no longer finite, and the reason; None if no such field was changed."""
    reason = None
    for name in FIELDS:
        old, new = getattr(before, name), getattr(after, name)
        if new is old:
            continue
        lost = ~jnp.isfinite(new) & jnp.isfinite(old)
        lost = jnp.any(lost.reshape(lost.shape[0], -1), axis=1)
        lost = any_by_system(after, lost) if after.level(name) == "atom" else lost
        reason = jnp.where(lost, field_reason(name), 0 if reason is None else reason)
    return None if reason is None else (reason > 0, reason)


__all__ = ["fail", "find_lost", "find_lost_results"]
