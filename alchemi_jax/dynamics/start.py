"""Before the first step: the state that a run begins with.

`init` makes a state in which all systems are fresh, and the compiled loop of the run evaluates it, so that
only one program contains neighbor list and model. Inside a transform, where nothing can be chosen on the
host, only the phases of a step that the first evaluation needs are run.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.check import check_arrays
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rescue import count_rescues, has_rescue
from alchemi_jax.dynamics.restore import new_rescue
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.dynamics.step import FIRST_EVALUATION, make_carry, run_phases
from alchemi_jax.dynamics.updates import own_state
from alchemi_jax.errors import description, name_of
from alchemi_jax.hooks import records
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.models.base import with_extra_results
from alchemi_jax.parameters import as_key
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.outcome import Outcome


def initial_state(
    engine: Engine, batch: Batch, neighbors: nl.NeighborList | None, key: PRNGKeyArray
) -> DynamicsState:
    """The state before the first evaluation: bookkeeping from scratch, memories, empty buffers. Traced.

    The state of the algorithm is zero until the first evaluation.
    """
    batch = start_bookkeeping(batch)
    if has_rescue(engine):
        batch = count_rescues(batch)
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
    if has_rescue(engine):
        state = state.replace(rescue=new_rescue(state))
    return state.replace(records=empty_buffers(engine, state))


def initial_flags(batch: Batch) -> dict[str, Any]:
    """The initial values, [systems], of the fields of a state with a row per system."""
    dtypes = {"came_from": jnp.int32, "time_error": batch.dtype}
    shape = batch.status.shape
    return {name: jnp.full(shape, value, dtypes.get(name, bool)) for name, value in FLAGS.items()}


def evaluate_first(engine: Engine, state: DynamicsState) -> DynamicsState:
    """The state after its first evaluation. Works under all transforms."""
    fresh = state.fresh & engine.active(state.batch)
    carry = make_carry(state, jnp.zeros_like(fresh), fresh, jnp.zeros((), bool))
    return run_phases(engine, carry, FIRST_EVALUATION).state


def init_like(engine: Engine, batch: Batch, key: PRNGKeyArray | None, like: DynamicsState) -> DynamicsState:
    """See `AbstractDynamics.init`."""
    check_arrays(engine, "init", batch)
    if not isinstance(like, DynamicsState):
        raise TypeError(f"{name_of(engine)}.init: like must be a state, not {description(like)}.")
    device, lists = engine.on_device(), like.neighbors
    state = _initial_state(device, with_extra_results(batch, engine.model), lists, as_key(key))
    state = evaluate_first_compiled(device, state)
    return state.replace(batch=state.batch.with_meta(batch.meta))


_initial_state = eqx.filter_jit(initial_state)
evaluate_first_compiled = eqx.filter_jit(evaluate_first)


def empty_buffers(engine: Engine, state: DynamicsState) -> tuple[records.RecordBuffer, ...]:
    """Empty buffers of the recording hooks, for rows of this batch."""
    carry = make_carry(state, engine.active(state.batch), None, jnp.ones((), bool))
    return tuple(
        records.allocate(entry.hook, engine._build_context(carry, _first_stage(entry.hook), group))
        for group in engine.groups
        for entry in group.hooks.recording
    )


def _first_stage(hook: Any) -> DynamicsStage:
    """The first stage that a hook runs on: its buffer is made for the context of this stage."""
    return next((s for s in DynamicsStage if runs_on(hook, s)), DynamicsStage.AFTER_STEP)


def start_bookkeeping(batch: Batch) -> Batch:
    """The batch with the bookkeeping of a run without any step."""
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
        velocities=jnp.where(batch.free_components, batch.velocities, 0),
    )


__all__ = [
    "empty_buffers",
    "evaluate_first",
    "evaluate_first_compiled",
    "init_like",
    "initial_flags",
    "initial_state",
    "start_bookkeeping",
]
