"""AbstractDynamics: parameters of an engine, and the one step function that knows the order of the stages."""

import contextlib
import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.dynamics import driver, start
from alchemi_jax.dynamics.admission import enter_stage
from alchemi_jax.dynamics.dispatch import dispatch
from alchemi_jax.dynamics.groups import Group, make_groups
from alchemi_jax.dynamics.loop import loop
from alchemi_jax.dynamics.progress import advance_status, revert_failed
from alchemi_jax.dynamics.rollout import rollout
from alchemi_jax.dynamics.stage import STEP
from alchemi_jax.dynamics.stage import DynamicsStage as DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState as DynamicsState
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.dynamics.updates import updated
from alchemi_jax.errors import UserCodeError, described, name_of, short_traceback
from alchemi_jax.hooks import Hook as Hook
from alchemi_jax.hooks import HookContext, HookSet
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.models.base import AbstractModel, evaluate_checked
from alchemi_jax.neighbors import update
from alchemi_jax.parameters import Described
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import select, unsafe_replace
from alchemi_jax.systems.observables import kinetic_energy
from alchemi_jax.systems.segments import any_by_system, to_atoms


if TYPE_CHECKING:
    from alchemi_jax.dynamics.footprint import Memory
    from alchemi_jax.dynamics.fused import FusedStage
    from alchemi_jax.dynamics.sampler import Sampler

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
    #: Whether `batch.velocities` are what this algorithm moves by. A system that enters a stage which does
    #: from one which does not gets velocities from `admit`.
    _has_velocities: ClassVar[bool] = True
    #: What hooks may ask of this algorithm through `batch.target_...`: "temperature", "pressure".
    _targets: ClassVar[frozenset[str]] = frozenset()

    def __check_init__(self):
        if not isinstance(self.model, AbstractModel):
            found = described(self.model)
            if isinstance(self.model, type):
                found = f"the class {self.model.__name__}"
            raise UserCodeError(
                f"{name_of(self)}.model must be an AbstractModel with its parameters, not {found}."
            )
        self.hooks.check_stages(self._stage_type)
        start.check_targets(self)
        start.check_lengths(self)
        start.warn_idle_hooks(self)

    # -- what an algorithm writes ----------------------------------------------------------------

    def init_state(self, batch: Batch) -> Any:
        """The algorithm's own state before the first step: a Module whose fields declare levels, or None."""
        return None

    @abstractmethod
    def pre_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what precedes the new forces. Pure; every system at once.

        An algorithm that draws noise takes a third argument, `key`: that of the run.
        """

    def post_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Batch and own state after what follows the new forces."""
        return batch, state

    def admit(self, batch: Batch, key: Array) -> Batch:
        """What a system begins with that enters this stage of a pipeline from a relaxation."""
        return batch

    def total_energy(self, batch: Batch, state: Any) -> Array:
        """What the exact motion conserves, [systems], eV, from batch and own state."""
        return batch.energy + kinetic_energy(batch)

    def unbalanced_stress(self, batch: Batch) -> Array:
        """Stress that the algorithm works against, [systems, 3, 3], eV/Å³: convergence is judged by it."""
        return batch.stress

    def relaxes_cell(self, batch: Batch) -> Array:
        """Systems whose cell a relaxation changes: they are converged when the stress is, too."""
        return jnp.zeros(batch.energy.shape, bool)

    def check(self, batch: Batch) -> None:
        """Called once, on the host, before the first step.

        Raises:
            ValueError: naming the system, if the algorithm cannot treat it.
        """

    # -- the user's doors ------------------------------------------------------------------------

    @property
    def n_stages(self) -> int:
        """Number of stages of the pipeline; one for a single engine."""
        return 1

    @property
    def exit_status(self) -> int:
        """`status` of a system that is finished."""
        return self.n_stages

    @property
    def max_steps(self) -> Array | None:
        """The most steps that a system can take, None: no limit."""
        return self.n_steps

    @property
    def parts(self) -> tuple["AbstractDynamics", ...]:
        """The stages of the pipeline, in order."""
        return (self,)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The hooks, and the stages to which they belong."""
        return make_groups([(None, self.hooks)])

    def init(
        self,
        batch: Batch,
        *,
        key: Array | None = None,
        builder: str | None = None,
        like: DynamicsState | None = None,
    ) -> DynamicsState:
        """The state before the first step: bookkeeping afresh, neighbor list made, model evaluated.

        Args:
            key: PRNG key for algorithms that draw noise; `jax.random.key(0)` by default.
            builder: who makes the neighbor list, also later on: "brute force", "cell list", or "warp" (the
                kernels of nvalchemi-toolkit-ops, extra `warp`); by default whichever of the first two
                is faster for these systems.
            like: a state whose neighbor list is taken over, with its capacities. Then nothing is chosen on
                the host, and `init` is fit for all transforms: what starts from other positions, cells or
                parameters has forces of its own. Too small a list shows in `state.overflow`.

        Raises:
            ValueError: naming the system, if the model cannot treat it; also inside a transform, without
                `like`, because capacities are chosen here (`loop` and `step` are fit for all transforms).
        """
        with short_traceback():
            if like is not None:
                return start.init_like(self, batch, key, like)
            return start.init(self, batch, key, builder)

    def run(
        self,
        batch: Batch | None = None,
        n_steps: int | None = None,
        *,
        key: Array | None = None,
        sampler: "Sampler | None" = None,
        sink: Sink | None = None,
        shrink: bool = False,
    ) -> Any:
        """Runs until every system is finished or its budget of steps is used up.

        Args:
            n_steps: in place of the engine's own.
            key: as for `init`.
            sampler: in place of a batch: systems enter as others are finished, so that the batch stays full.
                No step of a system depends on who else is there; shapes, hence compiled code, stay the same.
            sink: where finished systems of a sampler go; by default they are kept in memory.
            shrink: as for `advance`; for a sampler say it there.

        Returns:
            The batch: systems in the same order, with `status`, `converged`, `steps_taken` and
            `failed` per system. A run that did not converge is no error; a system whose energy or
            forces stopped being finite is left in its last finite state and reported in a warning.
            With a sampler: all systems, in the order of its source; or, with a sink, the sink, which has
            them in the order in which they finished (`system_id` says which is which).
        """
        if sampler is not None and batch is None and not shrink:
            from alchemi_jax.dynamics import refill

            with short_traceback():
                return refill.run(self, sampler, sink, n_steps, key)
        if batch is None or sampler is not None or sink is not None:
            raise TypeError(
                f"{type(self).__name__}.run takes a batch, or a sampler and maybe a sink; shrink goes with a "
                "batch, a Sampler has its own."
            )
        with short_traceback():
            return driver.run(self, batch, n_steps, key, shrink)

    def advance(self, state: DynamicsState, n_steps: int, *, shrink: bool = False) -> DynamicsState:
        """At most `n_steps` steps more of a state of your own; hooks of all kinds are called.

        Ctrl-C: in a notebook what was reached is returned, with a warning; elsewhere it is the `state` of
        the exception, `driver.Interrupted`, a KeyboardInterrupt.

        Args:
            shrink: when half of the systems are finished, go on with a batch half as large that holds the
                others, and so on; all are in their rows again at the end. Each size is compiled once in
                a process (seconds), so it pays where some systems need many more steps than most and
                a step is dear. Paths agree to rounding. Hooks must follow systems by their `system_id`.

        Raises:
            ValueError: with `shrink`, naming a hook or parameter that relies on rows.
        """
        with short_traceback():
            return driver.advance(self, state, n_steps, shrink)

    def loop(self, state: DynamicsState, n_steps: int | None = None) -> DynamicsState:
        """The same as one function for jit and vmap. Recorded rows come back in the state.

        Under jit host hooks are called through `io_callback`, in order.

        Neighbor lists cannot grow here: if one overflows the loop stops there, `state.overflow` is
        set, and energies and forces are NaN.

        Raises:
            ValueError: if the engine has host hooks and the loop is under vmap or grad.
        """
        with short_traceback():
            return loop(self, state, n_steps)

    def rollout(self, state: DynamicsState, n_steps: Any, *, checkpoint: Any = "sqrt") -> DynamicsState:
        """What `loop` gives, bit for bit, as a scan through which derivatives go in both directions.

        Args:
            n_steps: a plain int; once all systems are finished the rest of them costs nothing.
            checkpoint: what the backward pass finds stored, all else being computed again: with an int k
                n/k + k states, one every k steps and those of the k steps where it is now; "sqrt": the k for
                which these are fewest; None: all intermediate values of all steps.

        Raises:
            ValueError: if the engine has host hooks; for another `checkpoint` or `n_steps`.
        """
        with short_traceback():
            return rollout(self, state, n_steps, checkpoint)

    def memory(self, batch: Batch | DynamicsState) -> "Memory":
        """Bytes that the compiled loop needs for a batch, or to go on from a state: told without running.

        From XLA's own analysis of the very program that `run` uses, with neighbor lists of the sizes that
        `init` starts with. Compiles the loop once. `max_batch` asks the other way round.
        """
        from alchemi_jax.dynamics.footprint import memory

        return memory(self, batch)

    def conserved_energy(self, state: DynamicsState) -> Array:
        """What the exact motion would conserve, [systems], eV: potential and kinetic energy and, where there
        are a thermostat or barostat, what these hold. How much it drifts says whether dt is short enough."""
        return self.total_energy(state.batch, state.integrator)

    def with_hooks(self: _E, *hooks: Any) -> _E:
        """An engine with more hooks, after those that this one has; this one stays as it is."""
        return dataclasses.replace(self, hooks=[*self.hooks, *hooks])

    register_hook = with_hooks

    def on_device(self: _E) -> _E:
        """The engine as compiled code sees it: without host hooks."""
        hooks = self.hooks.on_device()
        return self if hooks is self.hooks else unsafe_replace(self, hooks=hooks)

    def __add__(self, other: "AbstractDynamics") -> "FusedStage":
        """A pipeline: each system goes through this engine and then through the other."""
        from alchemi_jax.dynamics.fused import FusedStage

        return FusedStage([self, other]) if isinstance(other, AbstractDynamics) else NotImplemented

    def __enter__(self: _E) -> _E:
        with contextlib.ExitStack() as stack:
            for group in self.groups:
                group.hooks.open()
                stack.push(group.hooks.close)
            stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        stack = contextlib.ExitStack()
        for group in self.groups:
            stack.push(group.hooks.close)
        stack.__exit__(*exc)

    # -- the step --------------------------------------------------------------------------------

    def step(self, state: DynamicsState) -> DynamicsState:
        """One step of all unfinished systems. Pure: fit for jit, vmap and loops of your own."""
        return self._end(self._through(self._begin(enter_stage(self, state)), STEP)).state

    def _through(self, flow: StepCarry, pieces: tuple) -> StepCarry:
        """Some pieces of a step, in order: stages call hooks, names are methods below."""
        for piece in pieces:
            if isinstance(piece, DynamicsStage):
                flow = dispatch(self, flow, piece)
            else:
                with jax.named_scope(piece):
                    flow = getattr(self, "_" + piece)(flow)
        return flow

    def active(self, batch: Batch) -> Bool[Array, " systems"]:
        """Systems that are not finished."""
        return jnp.asarray((batch.status < self.exit_status) & batch.system_mask)

    def _begin(self, state: DynamicsState) -> StepCarry:
        active = self.active(state.batch)
        none = jnp.zeros_like(active)
        state = dataclasses.replace(state, newly_converged=none, moved=active)
        return StepCarry(state, state.batch, state.integrator, active)

    def _pre_update(self, flow: StepCarry) -> StepCarry:
        return self._move(flow, "pre_update")

    def _post_update(self, flow: StepCarry) -> StepCarry:
        return self._move(flow, "post_update")

    def _move(self, flow: StepCarry, update: str) -> StepCarry:
        """What an algorithm makes of the active systems; the others stay as they are, bit for bit.

        A system stays in the stage in which it began the step, whatever a hook makes of its status.
        """
        old = flow.state
        begun = old.batch.replace(status=flow.start.status)
        batch, integrator = updated(self, update, begun, old.integrator, old.key)
        batch = batch.replace(status=old.batch.status)
        atoms = to_atoms(old.batch, flow.active)
        batch = select(atoms, flow.active, batch, old.batch)
        return flow.put(batch=batch, integrator=select(atoms, flow.active, integrator, old.integrator))

    def _compute(self, flow: StepCarry) -> StepCarry:
        """New forces; systems for which they are not finite go back to where the step began."""
        state, batch = flow.state, flow.state.batch
        neighbors = state.neighbors
        if neighbors is not None:
            neighbors = update(batch, neighbors, flow.unbuilt)
        batch, finite = self._evaluate(batch, neighbors)
        flow = flow.put(batch=batch, neighbors=neighbors)
        return revert_failed(self, flow, flow.active & ~finite)

    def _evaluate(self, batch: Batch, neighbors: Any) -> tuple[Batch, Bool[Array, " systems"]]:
        """The batch with the model's results, and for which systems they are finite."""
        stress = start.needs_stress(self)
        results = evaluate_checked(self.model, batch, neighbors, stress=stress)
        lost = any_by_system(batch, ~jnp.all(jnp.isfinite(results.forces), axis=-1))
        finite = jnp.isfinite(results.energy) & ~lost
        forces = jnp.where(batch.fixed[:, None], 0, results.forces)
        batch = batch.replace(energy=results.energy, forces=forces)
        if results.stress is not None:
            batch = batch.replace(stress=results.stress)
        return batch, finite

    def _barrier(self, flow: StepCarry) -> StepCarry:
        """What reads the result of a step must not change how it is computed, not by one bit."""
        return flow.put(batch=jax.lax.optimization_barrier(flow.state.batch))

    def _budgets(self, flow: StepCarry) -> StepCarry:
        return advance_status(self, flow)

    def _end(self, flow: StepCarry) -> StepCarry:
        return flow.put(step_count=flow.state.step_count + 1)

    # -- hooks -----------------------------------------------------------------------------------

    def _build_context(
        self, flow: StepCarry, stage: DynamicsStage, group: Group | None = None
    ) -> HookContext:
        """What the hooks of a group see at a stage. Of what they return, batch and memory are taken over."""
        state = flow.state
        if group is None:
            group = self.groups[0]
        newly = None
        if stage is DynamicsStage.ON_CONVERGE:
            newly = group.within(state.newly_converged, flow.start.status)
        return HookContext(
            batch=state.batch,
            step_count=state.step_count,
            model=self.model,
            converged_mask=newly,
            active_mask=group.mine(flow),
            stages=group.codes,
            workflow=self,
        )
