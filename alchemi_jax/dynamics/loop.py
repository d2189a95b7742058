"""The pure loop: steps of an engine as one traced function, for transforms and loops of the user's own."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax.dynamics.callbacks import check_deliverable, refuse_transforms
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import records
from alchemi_jax.transforms import is_traced


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def loop(engine: "AbstractDynamics", state: DynamicsState, n_steps: int | None) -> DynamicsState:
    """See `AbstractDynamics.loop`."""
    if any(group.hooks.host for group in engine.groups):
        check_deliverable(engine, state)
        engine, state = refuse_transforms(engine, (engine, state))
    n = n_steps if n_steps is not None else engine.max_steps
    if n is None:
        raise ValueError(f"{name_of(engine)}.loop needs n_steps, here or in the engine.")
    state = make_room_for_rows(engine, state, n)
    stop = state.step_count + n
    state = jax.lax.while_loop(
        lambda s: should_continue(engine, s, stop, False, 0), lambda s: engine.step(s), state
    )
    return nan_on_overflow(state)


def make_room_for_rows(engine: "AbstractDynamics", state: DynamicsState, n: Any) -> DynamicsState:
    """The state with buffers for all rows that n steps record."""
    recording = [held for group in engine.groups for held in group.hooks.recording]
    if not recording:
        return state
    if is_traced(n):
        raise ValueError("loop with recording hooks needs a concrete n_steps: it fixes shapes.")
    buffers = [
        records.grown(b, int(np.max(n)) // held.hook.frequency + 3)
        for b, held in zip(state.records, recording, strict=True)
    ]
    return state.replace(records=tuple(buffers))


def nan_on_overflow(state: DynamicsState) -> DynamicsState:
    """The state, with NaN for energies and forces if a neighbor list overflowed."""
    batch, nan = state.batch, jnp.where(state.overflow, jnp.nan, 0)
    return state.replace(
        batch=batch.replace(
            energy=batch.energy + nan.astype(batch.dtype),
            forces=batch.forces + nan.astype(batch.dtype),
        )
    )


def should_continue(
    engine: "AbstractDynamics", state: DynamicsState, stop: Any, wait: Any, few: Any
) -> Array:
    """Whether to take another step; `wait`: not after a step in which a system converged; `few`: not
    with so few unfinished systems, or fewer."""
    active = engine.active(state.batch).sum(dtype=jnp.int32)
    going = (state.step_count < stop) & (active > few)
    if state.neighbors is not None:
        going &= ~state.neighbors.overflow
    for buffer in state.records:
        going &= ~buffer.full
    return going & ~(wait & jnp.any(state.newly_converged))
