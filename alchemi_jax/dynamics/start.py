"""Before the first step: the state that a run begins with.

`init` makes a state in which every system is fresh, and lets the compiled loop of the run evaluate it: one
program holds neighbor list and model, not two. Inside a transform, where nothing can be chosen on the host,
only those phases of a step are run that the first evaluation needs.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.dynamics.step import FIRST_EVALUATION, make_carry, run_phases
from alchemi_jax.dynamics.updates import own_state
from alchemi_jax.hooks import records
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.outcome import Outcome


def initial_state(
    engine: Engine, batch: Batch, neighbors: nl.NeighborList | None, key: Array
) -> DynamicsState:
    """The state in which nothing is evaluated yet: bookkeeping from scratch, memories, empty buffers. Traced.

    The algorithm's own state holds zeros until the first evaluation.
    """
    batch = start_bookkeeping(batch)
    own = jax.eval_shape(lambda b: own_state(engine, b), batch)
    state = DynamicsState(
        batch=batch,
        integrator=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), own),
        neighbors=neighbors,
        step_count=jnp.zeros((), jnp.int32),
        memory=tuple(m for group in engine.groups for m in group.hooks.init(batch)),
        records=(),
        key=key,
        **initial_flags(batch),
    )
    return state.replace(records=empty_buffers(engine, state))


def initial_flags(batch: Batch) -> dict[str, Array]:
    """The fields of a state with a row per system, for systems that nothing has happened to."""
    dtypes = {"came_from": jnp.int32, "time_error": batch.dtype}
    shape = batch.status.shape
    return {name: jnp.full(shape, value, dtypes.get(name, bool)) for name, value in FLAGS.items()}


def evaluate_first(engine: Engine, state: DynamicsState) -> DynamicsState:
    """The state after its first evaluation, fit for all transforms."""
    fresh = state.fresh & engine.active(state.batch)
    carry = make_carry(state, jnp.zeros_like(fresh), fresh, jnp.zeros((), bool))
    return run_phases(engine, carry, FIRST_EVALUATION).state


def init_like(engine: Engine, batch: Batch, key: Array | None, like: DynamicsState) -> DynamicsState:
    """See `AbstractDynamics.init`."""
    key = jax.random.key(0) if key is None else key
    device = engine.on_device()
    state = _initial_state(device, batch, like.neighbors, key)
    state = evaluate_first_compiled(device, state)
    return state.replace(batch=state.batch.with_meta(batch.meta))


_initial_state = eqx.filter_jit(initial_state)
evaluate_first_compiled = eqx.filter_jit(evaluate_first)


def empty_buffers(engine: Engine, state: DynamicsState) -> tuple[records.RecordBuffer, ...]:
    """Those of the recording hooks, for rows of such a batch."""
    carry = make_carry(state, engine.active(state.batch), None, jnp.ones((), bool))
    return tuple(
        records.allocate(held.hook, engine._build_context(carry, _first_stage(held.hook), group))
        for group in engine.groups
        for held in group.hooks.recording
    )


def _first_stage(hook: Any) -> DynamicsStage:
    """Where a hook runs first, so that its buffer is made for what it will see there."""
    return next((s for s in DynamicsStage if runs_on(hook, s)), DynamicsStage.AFTER_STEP)


def start_bookkeeping(batch: Batch) -> Batch:
    """A batch of which no step was taken."""
    systems = batch.status.shape
    return batch.replace(
        status=jnp.zeros(systems, jnp.int32),
        converged=jnp.zeros(systems, bool),
        failed=jnp.zeros(systems, bool),
        outcome=jnp.full(systems, int(Outcome.RUNNING), jnp.int32),
        reason=jnp.zeros(systems, jnp.int32),
        steps_taken=jnp.zeros(systems, jnp.int32),
        stage_steps=jnp.zeros(systems, jnp.int32),
        time=jnp.zeros_like(batch.energy),
        target_temperature=jnp.full_like(batch.energy, jnp.nan),
        target_pressure=jnp.full_like(batch.energy, jnp.nan),
        stress=jnp.full_like(batch.stress, jnp.nan),
        velocities=jnp.where(batch.fixed[:, None], 0, batch.velocities),
    )
