"""Before the first step and after the last: making a state, its neighbor lists, the verdict."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.hooks.convergence import ConvergenceHook
from alchemi_jax.dynamics.stage import STEP, DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.updates import own_state
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import records
from alchemi_jax.hooks.set import runs_on
from alchemi_jax.models.base import results_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import is_traced


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def init(
    engine: "AbstractDynamics",
    batch: Batch,
    key: Array | None,
    builder: str | None = None,
    waiting: nl.Needs | None = None,
) -> DynamicsState:
    """See `AbstractDynamics.init`; lists have room for any of the systems with the needs `waiting`."""
    if is_traced((batch, engine)):
        raise ValueError(
            f"{name_of(engine)}.init chooses the capacities of neighbor lists on the host, so it cannot "
            "be traced: call it outside of jit, vmap and grad, and transform loop or step."
        )
    check(engine, batch)
    for part in engine.parts:
        check_per_system(part, batch)
    engine, meta = engine.on_device(), batch.meta
    batch = jax.device_put(unsafe_replace(batch, meta=None))
    neighbors = sizes = None
    cutoff, skin = engine.model.cutoff, engine.model.skin
    if cutoff is not None:
        sizes = nl.guess_sizes(batch, cutoff, skin, builder=builder, waiting=waiting)
    key = jax.random.key(0) if key is None else key
    while True:
        if cutoff is not None and sizes is not None:
            neighbors = empty(batch, cutoff, skin, sizes)
        state = prepared(engine, batch, neighbors, key, unbuilt=True)
        if sizes is None or state.neighbors is None or not bool(state.overflow):
            break
        sizes = nl.grow(sizes, np.asarray(state.neighbors.needs))
    state = unsafe_replace(state, batch=unsafe_replace(state.batch, meta=meta))
    warn_failed(state, before=None)
    return state


def check(engine: "AbstractDynamics", batch: Batch) -> None:
    """Asks model, hooks and algorithms whether they can treat these systems.

    Raises:
        ValueError: naming the first that one cannot.
    """
    engine.model.check(batch)
    for group in engine.groups:
        for hook in group.hooks.traced:
            hook.check(batch)
    for part in engine.parts:
        part.check(batch)


def init_like(
    engine: "AbstractDynamics", batch: Batch, key: Array | None, like: DynamicsState
) -> DynamicsState:
    """See `AbstractDynamics.init`."""
    key = jax.random.key(0) if key is None else key
    state = prepared(engine.on_device(), batch.replace(meta=None), like.neighbors, key)
    return state.replace(batch=state.batch.replace(meta=batch.meta))


@eqx.filter_jit
def empty(batch: Batch, cutoff: float, skin: float, sizes: nl.ListSizes) -> nl.NeighborList:
    """`neighbors.empty_list`, compiled."""
    return nl.empty_list(batch, cutoff, skin, sizes)


@eqx.filter_jit
def prepared(
    engine: "AbstractDynamics",
    batch: Batch,
    neighbors: nl.NeighborList | None,
    key: Array,
    unbuilt: bool = False,
) -> DynamicsState:
    """Bookkeeping afresh, memories, buffers, and the first evaluation."""
    systems = batch.status.shape
    none = jnp.zeros(systems, bool)
    batch = begun(batch)
    memory = tuple(m for group in engine.groups for m in group.hooks.init(batch))
    state = DynamicsState(
        batch=batch,
        integrator=None,
        neighbors=neighbors,
        step_count=jnp.zeros((), jnp.int32),
        memory=memory,
        records=(),
        key=key,
        newly_converged=none,
        moved=none,
        failed_at=jnp.full(systems, -1, jnp.int32),
        came_from=jnp.full(systems, -1, jnp.int32),
    )
    compute = STEP.index("compute")
    flow = dataclasses.replace(engine._begin(state), unbuilt=unbuilt)
    flow = engine._through(flow, STEP[compute - 1 : compute + 2])
    state = flow.state
    own = own_state(engine, state.batch)
    return state.replace(integrator=own, memory=memory, records=empty_buffers(engine, flow))


def empty_buffers(engine: "AbstractDynamics", flow: StepCarry) -> tuple[records.RecordBuffer, ...]:
    """Those of the recording hooks, for rows of such a batch."""
    return tuple(
        records.allocate(held.hook, engine._build_context(flow, _first_stage(held.hook), group))
        for group in engine.groups
        for held in group.hooks.recording
    )


def _first_stage(hook: Any) -> DynamicsStage:
    """Where a hook runs, so that its first row is made from what it will see there."""
    return next((s for s in DynamicsStage if runs_on(hook, s)), DynamicsStage.AFTER_STEP)


def begun(batch: Batch) -> Batch:
    """A batch with its bookkeeping started afresh."""
    systems = batch.status.shape
    return batch.replace(
        status=jnp.zeros(systems, jnp.int32),
        converged=jnp.zeros(systems, bool),
        failed=jnp.zeros(systems, bool),
        steps_taken=jnp.zeros(systems, jnp.int32),
        stage_steps=jnp.zeros(systems, jnp.int32),
        target_temperature=jnp.full_like(batch.energy, jnp.nan),
        target_pressure=jnp.full_like(batch.energy, jnp.nan),
        stress=jnp.full_like(batch.stress, jnp.nan),
        velocities=jnp.where(batch.fixed[:, None], 0, batch.velocities),
    )


def enlarge_list(batch: Batch, held: nl.NeighborList, wanted: nl.NeighborList) -> nl.NeighborList:
    """The held list with room for what building `wanted` needed. Lists are functions of their
    references, so nothing else changes."""
    sizes = nl.grow(held.sizes, np.asarray(wanted.needs))
    return rebuilt(batch, held, sizes)


@eqx.filter_jit
def rebuilt(batch: Batch, held: nl.NeighborList, sizes: nl.ListSizes) -> nl.NeighborList:
    """`neighbors.resized`, compiled."""
    return nl.resized(batch, held, sizes)


# -- after the last step ---------------------------------------------------------------------------


def finalize(engine: "AbstractDynamics", state: DynamicsState) -> Batch:
    """The batch of a state, with the stress of periodic systems, which a run leaves out where
    nothing reads it."""
    batch = state.batch
    if needs_stress(engine) or not np.asarray(batch.pbc).all(axis=-1).any():
        return batch
    return batch.replace(stress=stress_of(engine, state))


def stress_of(engine: "AbstractDynamics", state: DynamicsState) -> Array:
    """Stress of a state, eV/Å³; NaN where a system failed or is not periodic in all directions."""
    batch, neighbors = state.batch.replace(meta=None), state.neighbors
    # Mostly the list is that of the last forces, and nothing dear needs to be compiled to see it.
    while neighbors is not None and _outdated(batch, neighbors):
        after = _updated(batch, neighbors)
        neighbors = enlarge_list(batch, neighbors, after) if bool(after.overflow) else after
    return _stress(engine.model, batch, neighbors)


def _outdated(batch: Batch, neighbors: nl.NeighborList) -> bool:
    return bool(_may_be_outdated(batch, neighbors)) and bool(_is_outdated(batch, neighbors))


@eqx.filter_jit
def _may_be_outdated(batch: Batch, neighbors: nl.NeighborList) -> Array:
    return nl.may_be_due(batch, neighbors) | nl.offsets_outdated(batch, neighbors)


@eqx.filter_jit
def _is_outdated(batch: Batch, neighbors: nl.NeighborList) -> Array:
    return jnp.any(nl.due(batch, neighbors)) | nl.offsets_outdated(batch, neighbors)


@eqx.filter_jit
def _updated(batch: Batch, neighbors: nl.NeighborList) -> nl.NeighborList:
    return nl.update(batch, neighbors)


@eqx.filter_jit
def _stress(model: Any, batch: Batch, neighbors: nl.NeighborList | None) -> Array:
    stress: Any = results_of(model, batch, neighbors, stress=True).stress
    return jnp.where(batch.failed[:, None, None], jnp.nan, stress).astype(batch.dtype)


# -- what engine and driver agree on -----------------------------------------------------------


def needs_stress(engine: "AbstractDynamics") -> bool:
    """Whether the stress is evaluated in every step: the algorithm or a hook reads it."""
    hooks = (hook for group in engine.groups for hook in group.hooks)
    return engine._needs_stress or any(getattr(h, "needs_stress", False) for h in hooks)


def waits_for_convergence(engine: "AbstractDynamics", code: int) -> bool:
    """Whether a ConvergenceHook watches a stage."""
    return any(
        isinstance(hook, ConvergenceHook)
        for group in engine.groups
        if group.codes is None or code in group.codes
        for hook in group.hooks.traced
    )


def warn_idle_hooks(engine: "AbstractDynamics") -> None:
    """A hook whose stage can never come is most likely a mistake."""
    if any(group.hooks.any_traced(DynamicsStage.AFTER_STEP) for group in engine.groups):
        return
    for hook in engine.hooks:
        stages = [s for s in DynamicsStage if runs_on(hook, s)]
        if stages == [DynamicsStage.ON_CONVERGE]:
            warnings.warn(
                f"{name_of(hook)} waits for ON_CONVERGE, which never comes in this {name_of(engine)}: "
                "it has no ConvergenceHook.",
                stacklevel=5,
            )


_FOLLOWERS = {"temperature": "NVTLangevin", "pressure": "NPT"}


def check_targets(engine: "AbstractDynamics") -> None:
    """A hook that sets a temperature or pressure needs an algorithm that follows it.

    Raises:
        TypeError: naming hook and engine.
    """
    for hook in engine.hooks:
        missing = sorted(set(getattr(hook, "sets_targets", ())) - engine._targets)
        if missing:
            raise TypeError(
                f"{name_of(hook)} sets the {missing[0]}, but {name_of(engine)} keeps none: "
                f"attach it to an engine with a {missing[0]}, such as {_FOLLOWERS[missing[0]]}."
            )


def check_lengths(engine: "AbstractDynamics") -> None:
    """Parameters are numbers or one per system, as many as of the others.

    Raises:
        ValueError: naming engine and parameter.
    """
    first = None
    for f in dataclasses.fields(engine):
        value = getattr(engine, f.name)
        if not isinstance(value, jax.Array) or is_traced(value) or value.ndim == 0:
            continue
        if value.ndim > 1 or value.size == 0:
            raise ValueError(
                f"{name_of(engine)}.{f.name} must be a number or one per system, "
                f"not an array of shape {list(value.shape)}."
            )
        first = first or (f.name, value.shape[0])
        if value.shape[0] != first[1]:
            raise ValueError(
                f"{name_of(engine)}.{f.name} has {value.shape[0]} values, one per system, "
                f"but {first[0]} has {first[1]}."
            )


def check_per_system(engine: "AbstractDynamics", batch: Batch) -> None:
    """Parameters with one value per system must have as many as there are systems."""
    fits = (batch.num_systems, batch.system_capacity)
    for f in dataclasses.fields(engine):
        value = getattr(engine, f.name)
        if isinstance(value, jax.Array) and value.ndim == 1 and value.shape[0] not in fits:
            raise ValueError(
                f"{name_of(engine)}.{f.name} has {value.shape[0]} values, one per system, "
                f"but the batch has {fits[0]} systems."
            )


def warn_failed(state: DynamicsState, before: DynamicsState | None) -> None:
    """Names systems that failed since `before`, each once."""
    failed_at = np.asarray(state.failed_at)
    known = np.full_like(failed_at, -1) if before is None else np.asarray(before.failed_at)
    new = np.flatnonzero((failed_at >= 0) & (known < 0))
    for system in new[:10].tolist():
        when = "before the first step" if before is None else f"in step {failed_at[system]}"
        warnings.warn(
            f"{state.batch.name_of(system)} failed {when}: its energy or forces are not finite "
            "(atoms too close, or the time step too long?). It stays in its last finite state.",
            RuntimeWarning,
            stacklevel=4,
        )
    if len(new) > 10:
        warnings.warn(f"{len(new) - 10} more systems failed.", RuntimeWarning, stacklevel=4)
