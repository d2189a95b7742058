"""One step, from begin to end: `STEP` lists its phases in order.

Each phase takes engine and carry and returns the carry. The driver may run a part of `STEP`.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.enter import enter_parts, shapes_forces, start_evaluated, start_fresh
from alchemi_jax.dynamics.fail import fail, find_lost, find_lost_results
from alchemi_jax.dynamics.hook_calls import StepDispatcher
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import COLLAPSED, TOO_DENSE
from alchemi_jax.dynamics.restore import keep_copies, rescue_failed, shortened
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.status import advance_status
from alchemi_jax.dynamics.updates import apply_update
from alchemi_jax.hooks.dispatch import dispatch
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.models.base import results_of
from alchemi_jax.systems.levels import select, unsafe_replace
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.transforms import cond_any


Phase = Callable[[Engine, StepCarry], StepCarry]


@dataclasses.dataclass(frozen=True)
class HooksAt:
    """The phase in which the hooks of a stage are called."""

    stage: DynamicsStage

    def __call__(self, engine: Engine, carry: StepCarry) -> StepCarry:
        return dispatch(StepDispatcher(engine), carry, self.stage)


def begin(engine: Engine, state: DynamicsState, with_fresh: bool = True) -> StepCarry:
    """The carry of a step that begins: which systems it moves, and which it evaluates for the first time.

    Args:
        with_fresh: whether there may be fresh systems, not evaluated yet. A loop that starts from a state of
            `init` has none, and compiles less.
    """
    if engine.n_stages > 1:
        state = enter_parts(engine, state)
        if shapes_forces(engine):
            state = _renew_forces(engine, state)
    announced = state.converged_at_start
    active = engine.active(state.batch) & ~announced
    fresh, is_step = None, jnp.ones((), bool)
    if with_fresh:
        fresh = state.fresh & active
        active = active & ~fresh
        is_step = jnp.any(active | announced) | ~jnp.any(fresh)
    return make_carry(state, active, fresh, is_step)


def make_carry(
    state: DynamicsState,
    active: Bool[Array, " systems"],
    fresh: Bool[Array, " systems"] | None,
    is_step: Bool[Array, ""],
) -> StepCarry:
    """The carry of a step that begins with this state; arguments as the fields of `StepCarry`."""
    return StepCarry(
        state=dataclasses.replace(state, newly_converged=jnp.zeros_like(active), moved=active),
        start=state.batch,
        start_integrator=state.integrator,
        code=jnp.where(state.converged_at_start, state.came_from, state.batch.status),
        active=active,
        fresh=fresh,
        is_step=is_step,
    )


def _renew_forces(engine: Engine, state: DynamicsState) -> DynamicsState:
    """The state with new forces for systems that entered a part with hooks that change the forces."""
    entered = engine.active(state.batch) & state.fresh & (state.came_from >= 0)
    arrays, rest = eqx.partition(engine.on_device(), eqx.is_array)

    # Only the report of the neighbor list is returned: the list is expensive to copy.
    def evaluate(operands: tuple) -> tuple:
        arrays, state, entered = operands
        none = jnp.zeros_like(entered)
        carry = make_carry(state, none, entered, jnp.zeros((), bool))
        after = run_phases(eqx.combine(arrays, rest), carry, FIRST_EVALUATION[:4]).state
        return after.batch, after.integrator, _list_report(after)

    def stay(operands: tuple) -> tuple:
        return operands[1].batch, operands[1].integrator, _list_report(operands[1])

    given = state.replace(records=())
    batch, integrator, report = cond_any(jnp.any(entered), evaluate, stay, (arrays, given, entered))
    neighbors = None if state.neighbors is None else unsafe_replace(state.neighbors, **report)
    return state.replace(
        batch=batch.with_meta(state.batch.meta),
        integrator=integrator,
        neighbors=neighbors,
        fresh=state.fresh & ~entered,
    )


def _list_report(state: DynamicsState) -> dict[str, Shaped[Array, "..."]]:
    neighbors = state.neighbors
    return {} if neighbors is None else {"overflow": neighbors.overflow, "needs": neighbors.needs}


def pre_update(engine: Engine, carry: StepCarry) -> StepCarry:
    """The update of the algorithm before forces are computed."""
    return _update(engine, carry, "pre_update")


def compute(engine: Engine, carry: StepCarry) -> StepCarry:
    """Neighbor list, energies, forces, stress. Systems with values that are not finite fail."""
    batch, neighbors = carry.state.batch, carry.state.neighbors
    if neighbors is not None and engine.needs_stress and neighbors.sizes.periodic:
        # Before a list is made for them: only these algorithms change cells.
        large = nl.too_dense(batch, neighbors)
        dense = carry.active & (large | nl.collapsed(batch))
        carry = fail(engine, carry, dense, jnp.where(large, jnp.int32(TOO_DENSE), COLLAPSED))
        batch = carry.state.batch
    if neighbors is not None:
        neighbors = nl.update(batch, neighbors)
    results = results_of(engine.model, batch, neighbors, stress=reads_stress(engine))
    # What is done with the results must not change how they are computed, not by one bit.
    results = jax.lax.optimization_barrier(results)
    forces = jnp.where(batch.free_components, results.forces, 0).astype(batch.dtype)
    new = batch.replace(energy=results.energy.astype(batch.dtype), forces=forces)
    if results.stress is not None:
        new = new.replace(stress=results.stress.astype(batch.dtype))
    if results.extras:
        new = new.replace(**{name: x.astype(batch.dtype) for name, x in results.extras.items()})
    lost, reason = find_lost_results(new)
    carry = carry.update(batch=new, neighbors=neighbors)
    # Systems that do not move are as they were when the step began, so they need not be kept.
    return fail(engine, carry, carry.evaluated & lost, reason, keep=carry.evaluated & ~lost)


def post_update(engine: Engine, carry: StepCarry) -> StepCarry:
    """The update of the algorithm after forces are computed."""
    before = carry.state.batch
    carry = _update(engine, carry, "post_update")
    found = find_lost(before, carry.state.batch)
    return carry if found is None else fail(engine, carry, carry.active & found[0], found[1])


def separate(engine: Engine, carry: StepCarry) -> StepCarry:
    """A barrier: code that reads the result of a step must not change, by fusion, how it is computed."""
    return carry.update(batch=jax.lax.optimization_barrier(carry.state.batch))


def end(engine: Engine, carry: StepCarry) -> StepCarry:
    """Count the step, unless it only evaluated fresh systems."""
    return carry.update(step_count=carry.state.step_count + carry.is_step.astype(jnp.int32))


#: The phases of a step. Their order is defined here and nowhere else.
STEP: tuple[Phase, ...] = (
    HooksAt(DynamicsStage.BEFORE_STEP),
    HooksAt(DynamicsStage.BEFORE_PRE_UPDATE),
    pre_update,
    HooksAt(DynamicsStage.AFTER_PRE_UPDATE),
    HooksAt(DynamicsStage.BEFORE_COMPUTE),
    compute,
    HooksAt(DynamicsStage.AFTER_COMPUTE),
    start_fresh,
    HooksAt(DynamicsStage.BEFORE_POST_UPDATE),
    post_update,
    HooksAt(DynamicsStage.AFTER_POST_UPDATE),
    separate,
    HooksAt(DynamicsStage.AFTER_STEP),
    rescue_failed,
    advance_status,
    HooksAt(DynamicsStage.ON_CONVERGE),
    keep_copies,
    end,
)

#: The phases for systems that are evaluated for the first time.
FIRST_EVALUATION: tuple[Phase, ...] = (
    HooksAt(DynamicsStage.BEFORE_COMPUTE),
    compute,
    HooksAt(DynamicsStage.AFTER_COMPUTE),
    start_evaluated,
    HooksAt(DynamicsStage.AFTER_STEP),
    advance_status,
    keep_copies,
    end,
)


def step(engine: Engine, state: DynamicsState, with_fresh: bool = True) -> DynamicsState:
    """One step of all systems that are not finished. Pure."""
    return run_phases(engine, begin(engine, state, with_fresh), STEP).state


def run_phases(engine: Engine, carry: StepCarry, phases: tuple[Phase, ...]) -> StepCarry:
    """Run some phases of a step, in order."""
    for phase in phases:
        name = phase.stage.name.lower() if isinstance(phase, HooksAt) else getattr(phase, "__name__", "phase")
        with jax.named_scope(name):
            carry = phase(engine, carry)
    return carry


def reads_stress(engine: Engine) -> bool:
    """Whether the algorithm or a hook reads the stress, so that every step evaluates it."""
    hooks = (hook for group in engine.groups for hook in group.hooks)
    return engine.needs_stress or any(flag(hook, "needs_stress") for hook in hooks)


def _update(engine: Engine, carry: StepCarry, update: str) -> StepCarry:
    """An update of the algorithm for the active systems; the others stay as they are, bit for bit.

    A system is updated by the part in which it began the step, even if a hook has changed its status since.
    """
    state, old = carry.state, carry.state.batch
    batch, integrator = apply_update(
        shortened(engine, state), update, old.replace(status=carry.code), state.integrator, state.key
    )
    batch = batch.replace(status=old.status)
    active: Bool[Array, " systems"] = carry.active
    atoms = to_atoms(old, active)
    return carry.update(
        batch=select(atoms, active, batch, old),
        integrator=select(atoms, active, integrator, state.integrator),
    )


__all__ = [
    "FIRST_EVALUATION",
    "STEP",
    "HooksAt",
    "Phase",
    "begin",
    "compute",
    "end",
    "make_carry",
    "post_update",
    "pre_update",
    "reads_stress",
    "run_phases",
    "separate",
    "step",
]
