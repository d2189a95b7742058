"""AbstractDynamics: parameters of an engine, and the one step function that knows the order of the stages."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.batch import Batch
from alchemi_jax.dynamics import driver, prepare, records
from alchemi_jax.dynamics.callbacks import deliver
from alchemi_jax.dynamics.stage import STEP
from alchemi_jax.dynamics.stage import DynamicsStage as DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState as DynamicsState
from alchemi_jax.dynamics.state import Flow
from alchemi_jax.hooks import Hook as Hook
from alchemi_jax.hooks import HookContext, HookSet
from alchemi_jax.hooks.registry import runs_on
from alchemi_jax.levels import select
from alchemi_jax.models.base import AbstractModel, evaluate_checked
from alchemi_jax.neighbors import update
from alchemi_jax.parameters import Described
from alchemi_jax.segments import any_by_system, to_atoms


_E = TypeVar("_E", bound="AbstractDynamics")


class AbstractDynamics(Described):
    """An engine: a frozen set of parameters. What a step changes is in `DynamicsState`.

    An algorithm writes `init_state`, `pre_update` and `post_update`; everything else is here.
    `with engine:` opens its hooks for any number of runs.

    Attributes:
        model: gives energies and forces.
        n_steps: budget of steps for each system, None: no limit. A leaf: no compiling when it changes.
        hooks: a HookSet, made from a list of hooks.
    """

    model: eqx.AbstractVar[AbstractModel]
    n_steps: eqx.AbstractVar[Array | None]
    hooks: eqx.AbstractVar[HookSet]

    _stage_type: ClassVar[Any] = DynamicsStage
    #: Whether this algorithm reads `batch.stress` in every step.
    _needs_stress: ClassVar[bool] = False

    def __check_init__(self):
        self.hooks.check_stages(self._stage_type)
        prepare.warn_idle_hooks(self)

    # -- what an algorithm writes ----------------------------------------------------------------

    def init_state(self, batch: Batch) -> Any:
        """The algorithm's own state before the first step: a Module whose fields declare levels, or None."""
        return None

    @abstractmethod
    def pre_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what precedes the new forces. Pure; every system at once."""

    def post_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what follows the new forces."""
        return batch, state

    # -- the user's doors ------------------------------------------------------------------------

    @property
    def n_stages(self) -> int:
        """Number of stages of the pipeline; one for a single engine."""
        return 1

    @property
    def exit_status(self) -> int:
        """`status` of a system that is finished."""
        return self.n_stages

    def init(self, batch: Batch, *, key: Array | None = None) -> DynamicsState:
        """The state before the first step: bookkeeping afresh, neighbor list made, model evaluated.

        Args:
            key: PRNG key for algorithms that draw noise; `jax.random.key(0)` by default.

        Raises:
            ValueError: naming the system, if the model cannot treat it; also inside a transform,
                because capacities are chosen here (`loop` and `step` are fit for all transforms).
        """
        return prepare.init(self, batch, key)

    def run(self, batch: Batch, n_steps: int | None = None, *, key: Array | None = None) -> Batch:
        """Runs until every system is finished or its budget of steps is used up.

        Args:
            n_steps: in place of the engine's own.
            key: as for `init`.

        Returns:
            The batch: systems in the same order, with `status`, `converged`, `steps_taken` and
            `failed` per system. A run that did not converge is no error; a system whose energy or
            forces stopped being finite is left in its last finite state and reported in a warning.
        """
        return driver.run(self, batch, n_steps, key)

    def advance(self, state: DynamicsState, n_steps: int) -> DynamicsState:
        """At most `n_steps` steps more of a state of your own; hooks of all kinds are called."""
        return driver.advance(self, state, n_steps)

    def loop(self, state: DynamicsState, n_steps: int | None = None) -> DynamicsState:
        """The same as one function for jit and vmap. Recorded rows come back in the state.

        Under jit host hooks are called through `io_callback`, in order.

        Neighbor lists cannot grow here: if one overflows the loop stops there, `state.overflow` is
        set, and energies and forces are NaN.

        Raises:
            ValueError: if the engine has host hooks and the loop is under vmap or grad.
        """
        return driver.loop(self, state, n_steps)

    def with_hooks(self: _E, *hooks: Any) -> _E:
        """An engine with more hooks, after those that this one has; this one stays as it is."""
        return dataclasses.replace(self, hooks=[*self.hooks, *hooks])

    register_hook = with_hooks

    def __enter__(self: _E) -> _E:
        self.hooks.open()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.hooks.close(*exc)

    # -- the step --------------------------------------------------------------------------------

    def step(self, state: DynamicsState) -> DynamicsState:
        """One step of all unfinished systems. Pure: fit for jit, vmap and loops of your own."""
        return self._end(self._through(self._begin(state), STEP)).state

    def _through(self, flow: Flow, pieces: tuple) -> Flow:
        """Some pieces of a step, in order: stages call hooks, names are methods below."""
        for piece in pieces:
            if isinstance(piece, DynamicsStage):
                flow = self._dispatch(flow, piece)
            else:
                with jax.named_scope(piece):
                    flow = getattr(self, "_" + piece)(flow)
        return flow

    def active(self, batch: Batch) -> Bool[Array, " systems"]:
        """Systems that are not finished."""
        return jnp.asarray((batch.status < self.exit_status) & batch.system_mask)

    def _begin(self, state: DynamicsState) -> Flow:
        active = self.active(state.batch)
        none = jnp.zeros_like(active)
        state = dataclasses.replace(state, newly_converged=none, moved=active)
        return Flow(state, state.batch, state.integrator, active)

    def _pre_update(self, flow: Flow) -> Flow:
        return self._move(flow, self.pre_update(flow.state.batch, flow.state.integrator))

    def _post_update(self, flow: Flow) -> Flow:
        return self._move(flow, self.post_update(flow.state.batch, flow.state.integrator))

    def _move(self, flow: Flow, new: tuple[Batch, Any]) -> Flow:
        """What an algorithm made of the active systems; the others stay as they are, bit for bit."""
        old = flow.state
        atoms = to_atoms(old.batch, flow.active)
        batch = select(atoms, flow.active, new[0], old.batch)
        integrator = select(atoms, flow.active, new[1], old.integrator)
        return flow.put(batch=batch, integrator=integrator)

    def _compute(self, flow: Flow) -> Flow:
        """New forces; systems for which they are not finite go back to where the step began."""
        state, batch = flow.state, flow.state.batch
        neighbors = state.neighbors
        if neighbors is not None:
            neighbors = update(batch, neighbors)
        batch, finite = self._evaluate(batch, neighbors)
        flow = flow.put(batch=batch, neighbors=neighbors)
        return self._put_back(flow, flow.active & ~finite)

    def _put_back(self, flow: Flow, bad: Bool[Array, " systems"]) -> Flow:
        """Failed systems, and those that the step does not move, are what they were when it began."""
        state = flow.state
        good = flow.active & ~bad
        atoms = to_atoms(state.batch, good)
        batch = select(atoms, good, state.batch, flow.start)
        flow = flow.put(
            batch=batch.replace(
                failed=batch.failed | bad, status=jnp.where(bad, self.exit_status, batch.status)
            ),
            integrator=select(atoms, good, state.integrator, flow.start_integrator),
            failed_at=jnp.where(bad, state.step_count, state.failed_at),
            moved=good,
        )
        return dataclasses.replace(flow, active=good)

    def _evaluate(self, batch: Batch, neighbors: Any) -> tuple[Batch, Bool[Array, " systems"]]:
        """The batch with the model's results, and for which systems they are finite."""
        stress = prepare.needs_stress(self)
        results = evaluate_checked(self.model, batch, neighbors, stress=stress)
        lost = any_by_system(batch, ~jnp.all(jnp.isfinite(results.forces), axis=-1))
        finite = jnp.isfinite(results.energy) & ~lost
        forces = jnp.where(batch.fixed[:, None], 0, results.forces)
        batch = batch.replace(energy=results.energy, forces=forces)
        if results.stress is not None:
            batch = batch.replace(stress=results.stress)
        return batch, finite

    def _barrier(self, flow: Flow) -> Flow:
        """What reads the result of a step must not change how it is computed, not by one bit."""
        return flow.put(batch=jax.lax.optimization_barrier(flow.state.batch))

    def _budgets(self, flow: Flow) -> Flow:
        if any(hook.may_fail for hook in self.hooks.traced):
            flow = self._put_back(flow, flow.active & flow.state.batch.failed)
        batch = flow.state.batch
        newly = flow.active & (batch.status > flow.start.status)
        steps_taken = batch.steps_taken + flow.active
        status = batch.status
        if self.n_steps is not None:
            expired = flow.active & ~newly & (steps_taken >= self.n_steps)
            status = status + expired
        batch = batch.replace(
            status=jnp.minimum(status, self.exit_status),
            steps_taken=steps_taken,
            converged=batch.converged | newly,
        )
        return flow.put(batch=batch, newly_converged=newly)

    def _end(self, flow: Flow) -> Flow:
        return flow.put(step_count=flow.state.step_count + 1)

    # -- hooks -----------------------------------------------------------------------------------

    def _build_context(self, flow: Flow, stage: DynamicsStage) -> HookContext:
        """What hooks see at a stage. Of what they return, batch and memory are taken over."""
        state = flow.state
        return HookContext(
            batch=state.batch,
            step_count=state.step_count,
            model=self.model,
            converged_mask=state.newly_converged if stage is DynamicsStage.ON_CONVERGE else None,
            active_mask=flow.active,
            workflow=self,
        )

    def _dispatch(self, flow: Flow, stage: DynamicsStage) -> Flow:
        """Traced hooks of a stage, then rows for the recording ones."""
        state, hooks = flow.state, self.hooks
        on_converge = stage is DynamicsStage.ON_CONVERGE
        if hooks.any_traced(stage):

            def call(operands: tuple[Batch, tuple]) -> tuple[Batch, tuple]:
                batch, memory = operands
                ctx = self._build_context(flow.put(batch=batch), stage)
                ctx, memory = hooks.run_traced(ctx, stage, memory)
                atoms = to_atoms(batch, flow.active)
                return select(atoms, flow.active, ctx.batch, batch), memory

            operands = (state.batch, state.memory)
            if on_converge:
                any_newly = jnp.any(state.newly_converged)
                batch, memory = jax.lax.cond(any_newly, call, lambda o: o, operands)
            else:
                batch, memory = call(operands)
            flow = flow.put(batch=batch, memory=memory)
        buffers = list(flow.state.records)
        # `init` evaluates before there are buffers.
        for i, held in enumerate(hooks.recording if buffers else ()):
            if runs_on(held.hook, stage):
                due: Any = True
                if held.hook.frequency > 1:
                    due = state.step_count % held.hook.frequency == 0
                if on_converge:
                    due = due & jnp.any(state.newly_converged)
                ctx = self._build_context(flow, stage)
                buffers[i] = records.append(held.hook, buffers[i], ctx, due)
        # The driver takes host hooks off what it compiles and calls them itself; they are here
        # when a user embeds `step` or `loop` in code of their own.
        if hooks.host:
            deliver(self, flow, stage)
        return flow.put(records=tuple(buffers))
