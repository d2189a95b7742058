"""AbstractDynamics, an engine with the user's methods, and FusedStage, several of them in one loop."""

import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from alchemi_jax.dynamics import driver, rollout, run, start
from alchemi_jax.dynamics import loop as loops
from alchemi_jax.dynamics import step as steps
from alchemi_jax.dynamics.algorithm import Algorithm
from alchemi_jax.dynamics.check import (
    check_arrays,
    check_hooks,
    check_lengths,
    check_model,
    check_rescue,
    warn_idle_hooks,
)
from alchemi_jax.dynamics.flatten import flatten
from alchemi_jax.dynamics.footprint import Footprint, footprint
from alchemi_jax.dynamics.reasons import reason_text
from alchemi_jax.dynamics.rescue import Rescue
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.status import within
from alchemi_jax.dynamics.updates import apply_update, own_state, stage_key
from alchemi_jax.errors import public_call
from alchemi_jax.hooks import HookContext, HookSet
from alchemi_jax.hooks.groups import Group, make_groups
from alchemi_jax.io.sinks import Sink
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import as_count
from alchemi_jax.systems.batch import Batch, as_batch
from alchemi_jax.systems.levels import select, unsafe_replace
from alchemi_jax.systems.segments import to_atoms


class AbstractDynamics(Algorithm):
    """An engine: a frozen set of parameters. What a step changes is in `DynamicsState`.

    An algorithm defines `init_state`, `pre_update` and `post_update`; everything else is here. `with engine:`
    opens its hooks for any number of runs. Its fields are `model`, `n_steps`, `hooks`, `rescue` and the
    parameters of the algorithm.
    """

    def __check_init__(self):
        check_model(self)
        self.hooks.check_stages(self._stage_type)
        check_hooks(self)
        check_lengths(self)
        check_rescue(self)
        warn_idle_hooks(self)

    # -- the user's methods ----------------------------------------------------------------------

    @property
    def n_stages(self) -> int:
        """Number of parts of the pipeline; 1 for a single engine."""
        return 1

    @property
    def exit_status(self) -> int:
        """The `status` of a finished system."""
        return self.n_stages

    @property
    def max_steps(self) -> Int[Array, ""] | None:
        """Largest number of steps that a system can take; None: no limit."""
        return self.n_steps

    @property
    def parts(self) -> tuple["AbstractDynamics", ...]:
        """The parts of the pipeline, in order."""
        return (self,)

    def init(
        self,
        batch: Any,
        *,
        key: PRNGKeyArray | None = None,
        builder: str | None = None,
        like: DynamicsState | None = None,
    ) -> DynamicsState:
        """The state before the first step: status and counts reset, neighbor list built, model evaluated.

        Args:
            key: PRNG key for algorithms with random numbers; `jax.random.key(0)` by default.
            builder: how the neighbor list is built, also later: "brute force", "cell list", or "warp"
                (kernels of nvalchemi-toolkit-ops, extra `warp`); by default the faster of the first two for
                these systems.
            like: a state whose neighbor list and capacities are used. Then nothing is chosen on the host, and
                `init` works inside transforms, where forces depend on the given positions, cells and
                parameters. If a capacity is too small, `state.overflow` is set.

        Raises:
            ValueError: naming the system, if the model cannot treat it; inside a transform without `like`,
                because capacities are chosen here (`loop` and `step` work in all transforms).
        """
        with public_call():
            if like is not None:
                return start.init_like(self, as_batch(batch), key, like)
            return driver.init(self, as_batch(batch), key, builder)[0]

    def run(
        self,
        batch: Any = None,
        n_steps: int | None = None,
        *,
        key: PRNGKeyArray | None = None,
        sampler: Sampler | None = None,
        sink: Sink | None = None,
        shrink: bool = False,
        resume: str | os.PathLike | None = None,
        devices: Any = None,
    ) -> Any:
        """Runs until every system is finished or its budget of steps is used up.

        Args:
            batch: a Batch, or ASE structures, one or a list of them.
            n_steps: replaces that of the engine.
            key: as for `init`.
            sampler: replaces the batch: systems enter as others finish, so that the batch stays full. The
                steps of a system do not depend on the others. Shapes, hence compiled code, stay the same.
            sink: stores finished systems of a sampler; by default they are kept in memory.
            shrink: as for `advance`; with a sampler set it there.
            resume: a folder of checkpoints. The run continues from the newest valid one, bit for bit, or
                starts if there is none. It saves there when its CheckpointHook says so, by default every 60
                s, and at its end. Sinks and logs first return to that checkpoint, so that no frame or row is
                missing or double. Systems that were out of steps continue if `n_steps` is larger now.
            devices: "all", a number, or a list of JAX devices; the cores of a CPU are devices. Systems are
                distributed by cost (with a sampler: set it there). Trajectories are those of a run on one
                device.

        Returns:
            The batch in the same order; `outcome`, `reason`, `steps_taken`, ... say what happened. A system
            with a value that is not finite stays in its last finite state, with a warning. With a sampler:
            all systems in the order of its source, or the sink, which has them in the order in which they
            finished, with their `system_id`.
        """
        with public_call():
            return run.run(self, batch, n_steps, key, sampler, sink, shrink, resume, devices)

    def advance(
        self, state: DynamicsState, n_steps: Any, *, shrink: bool = False, devices: Any = None
    ) -> DynamicsState:
        """Takes at most `n_steps` more steps from a state; calls hooks of all kinds.

        An exception, from a hook or by Ctrl-C, has the state reached as its attribute `state`. After Ctrl-C
        (`driver.Interrupted`) in a notebook that state is returned, with a warning.

        Args:
            shrink: whether to continue with a batch of half the size when half of the systems are finished,
                and so on. At the end all systems are in their rows again. Each size is compiled once per
                process (seconds), so it pays if some systems need many more steps than most and a step is
                expensive. Trajectories agree to rounding. Hooks must identify systems by `system_id`.
            devices: as for `run`.

        Raises:
            ValueError: with `shrink`, naming a hook or parameter that relies on rows.
        """
        with public_call():
            return run.advance(self, state, n_steps, shrink, devices)

    def loop(self, state: DynamicsState, n_steps: Any = None) -> DynamicsState:
        """`advance` as one pure function, for jit and vmap. Recorded rows are in the state that it returns.

        Under jit host hooks are called through `io_callback`, in order.

        Neighbor lists cannot grow here. If one overflows, the loop ends, `state.overflow` is set, and
        energies and forces are NaN.

        Raises:
            ValueError: under `jax.grad` (use `rollout`); under vmap if the engine has host hooks.
        """
        with public_call():
            return loops.loop(self, state, n_steps)

    def rollout(self, state: DynamicsState, n_steps: Any, *, checkpoint: Any = "sqrt") -> DynamicsState:
        """The result of `loop`, bit for bit, by a scan with derivatives in forward and reverse mode.

        Args:
            n_steps: a plain int; steps after all systems are finished cost nothing.
            checkpoint: what is stored for the backward pass; the rest is computed again. An int k stores
                every k-th state, and those of k steps at a time: n/k + k states. "sqrt" takes the k with the
                fewest. None stores all intermediate values of all steps.

        Raises:
            ValueError: if the engine has host hooks; for another `checkpoint` or `n_steps`.
        """
        with public_call():
            return rollout.rollout(self, state, n_steps, checkpoint)

    def footprint(self, batch: Batch | DynamicsState) -> Footprint:
        """Bytes that the compiled loop needs for a batch, or to continue from a state, without running it.

        The numbers are XLA's analysis of the program that `run` uses, with neighbor lists of the initial
        sizes. Compiles the loop once. `max_batch` gives the number of systems that fit into a number of
        bytes.
        """
        return footprint(self, batch if isinstance(batch, DynamicsState) else as_batch(batch))

    def reason_text(self, code: Any) -> str:
        """The text of a number in `batch.reason`, such as "its energy is not finite"; empty for 0."""
        return reason_text(self, int(code))

    def conserved_energy(self, state: DynamicsState) -> Float[Array, " systems"]:
        """The energy that the exact dynamics conserve, eV, [systems]: potential and kinetic energy, and those
        of thermostat and barostat if there are any. Its drift says whether dt is short enough."""
        check_arrays(self, "conserved_energy", state)
        return self.total_energy(state.batch, state.integrator)

    def __add__(self, other: "AbstractDynamics") -> "FusedStage":
        """A pipeline, a `FusedStage`: each system goes through this engine and then through the other."""
        return FusedStage([self, other]) if isinstance(other, AbstractDynamics) else NotImplemented

    # -- the parts of a step ---------------------------------------------------------------------

    def step(self, state: DynamicsState) -> DynamicsState:
        """One step of all unfinished systems: a pure function, for jit, vmap and loops of your own.

        To compile it write `eqx.filter_jit(engine.step)`, or `jax.jit(lambda state: engine.step(state))`.
        """
        with public_call():
            check_arrays(self, "step", state)
            return steps.step(self, state, with_fresh=False)

    def active(self, batch: Batch) -> Bool[Array, " systems"]:
        """True for systems that are not finished, [systems]."""
        return jnp.asarray((batch.status < self.exit_status) & batch.system_mask)

    def _build_context(
        self, carry: StepCarry, stage: DynamicsStage, group: Group | None = None
    ) -> HookContext:
        """What the hooks of a group see at a stage. Of what they return, batch and memory are taken back."""
        state, group = carry.state, self.groups[0] if group is None else group
        newly = None
        if stage is DynamicsStage.ON_CONVERGE:
            newly = within(group, state.newly_converged, carry.code)
        return HookContext(
            batch=state.batch,
            step_count=state.step_count,
            model=self.model,
            converged_mask=newly,
            active_mask=within(group, carry.active, carry.code),
            global_rank=jax.process_index(),
            world_size=jax.process_count(),
            stages=group.codes,
            workflow=self,
        )


class FusedStage(AbstractDynamics):
    """A pipeline, `relax + md`: each system goes through its parts, which are engines, at its own pace.

    `status` is the number of the part in which a system is. It increases when a ConvergenceHook of the part
    says so, or when the `n_steps` of the part are used up. The model is evaluated once per step.

    Hooks of a part are called while a system is in it, with those systems as `ctx.active_mask`. Hooks of the
    pipeline see all systems; they are called first at BEFORE_* stages and last elsewhere. A system starts in
    a part as in a run of its own.

    Args:
        stages: the engines, in order; pipelines among them are flattened. All have the same model.
        hooks: of the pipeline.
        n_steps: budget of a system over all parts, besides those of the parts.
        rescue: a `Rescue` for parts without their own.

    Raises:
        ValueError: if the parts have different models, or a nested pipeline has a budget of its own.
    """

    stages: tuple[AbstractDynamics, ...]
    hooks: HookSet
    n_steps: Int[Array, ""] | None
    inner: tuple[HookSet, ...] = eqx.field(repr=False)
    inner_codes: tuple[tuple[int, ...], ...] = eqx.field(static=True, repr=False)

    def __init__(
        self,
        stages: Any,
        hooks: Any = (),
        n_steps: Any = None,
        inner: tuple[HookSet, ...] = (),
        inner_codes: tuple[tuple[int, ...], ...] = (),
        rescue: Rescue | None = None,
    ):
        flat, inner, inner_codes = flatten(stages, tuple(inner), tuple(inner_codes))
        self.stages = tuple(flat)
        self.hooks = hooks if isinstance(hooks, HookSet) else HookSet(hooks)
        self.n_steps = as_count("n_steps")(n_steps)
        self.inner, self.inner_codes = inner, inner_codes
        self.rescue = rescue

    def __repr__(self) -> str:
        lines = [f"stage {code}: {stage!r}" for code, stage in enumerate(self.stages)]
        lines += [f"hooks of stages {c}: {h!r}" for c, h in zip(self.inner_codes, self.inner, strict=True)]
        lines += [f"hooks: {self.hooks!r}"] if len(self.hooks) else []
        lines += [f"n_steps: {self.n_steps}"] if self.n_steps is not None else []
        lines += [f"rescue: {self.rescue}"] if self.rescue is not None else []
        return "FusedStage(\n  " + ",\n  ".join(lines) + "\n)"

    @property
    def model(self) -> AbstractModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The model of all parts."""
        return self.stages[0].model

    @property
    def n_stages(self) -> int:
        return len(self.stages)

    @property
    def parts(self) -> tuple[AbstractDynamics, ...]:
        return self.stages

    @property
    def max_steps(self) -> Any:
        budgets = [stage.n_steps for stage in self.stages]
        total = None if any(n is None for n in budgets) else sum(n for n in budgets if n is not None)
        if total is None or self.n_steps is None:
            return self.n_steps if total is None else total
        return jnp.minimum(total, self.n_steps)

    @property
    def groups(self) -> tuple[Group, ...]:
        own = [(None, self.hooks), *zip(self.inner_codes, self.inner, strict=True)]
        return make_groups([*own, *(((code,), stage.hooks) for code, stage in enumerate(self.stages))])

    def init_state(self, batch: Batch) -> tuple[Any, ...]:
        return tuple(own_state(stage, batch) for stage in self.stages)

    def pre_update(self, batch: Batch, state: tuple, key: PRNGKeyArray) -> tuple[Batch, tuple]:
        return self._each("pre_update", batch, state, key)

    def post_update(self, batch: Batch, state: tuple, key: PRNGKeyArray) -> tuple[Batch, tuple]:
        return self._each("post_update", batch, state, key)

    def _each(self, update: str, batch: Batch, states: tuple, key: PRNGKeyArray) -> tuple[Batch, tuple]:
        merged, after = batch, []
        for code, (stage, state) in enumerate(zip(self.stages, states, strict=True)):
            new, new_state = apply_update(stage, update, batch, state, stage_key(key, code))
            mine = batch.status == code
            atoms = to_atoms(batch, mine)
            merged = select(atoms, mine, new, merged)
            after.append(select(atoms, mine, new_state, state))
        return merged, tuple(after)

    def total_energy(self, batch: Batch, state: tuple) -> Float[Array, " systems"]:
        """By the algorithm of the part in which a system is; for finished systems by the last part."""
        energies = [part.total_energy(batch, own) for part, own in zip(self.stages, state, strict=True)]
        return self._by_stage(batch, energies)

    def ensemble_energy(self, batch: Batch) -> Float[Array, " systems"]:
        return self._by_stage(batch, [part.ensemble_energy(batch) for part in self.stages])

    def scale_momenta(self, state: tuple, factor: Float[Array, " systems"]) -> tuple:
        pairs = zip(self.stages, state, strict=True)
        return tuple(part.scale_momenta(own, factor) for part, own in pairs)

    def shorten_steps(self, batch: Batch, factor: Float[Array, " systems"]) -> "FusedStage":
        return unsafe_replace(self, stages=tuple(part.shorten_steps(batch, factor) for part in self.stages))

    def shorten_state(self, state: tuple, factor: Float[Array, " systems"]) -> tuple:
        pairs = zip(self.stages, state, strict=True)
        return tuple(part.shorten_state(own, factor) for part, own in pairs)

    def unbalanced_stress(self, batch: Batch) -> Float[Array, "systems 3 3"]:
        return self._by_stage(batch, [part.unbalanced_stress(batch) for part in self.stages])

    def relaxes_cell(self, batch: Batch) -> Bool[Array, " systems"]:
        return self._by_stage(batch, [part.relaxes_cell(batch) for part in self.stages])

    def _by_stage(self, batch: Batch, values: list[Shaped[Array, "systems ..."]]) -> Shaped[Array, "..."]:
        stage = jnp.clip(batch.status, 0, self.n_stages - 1)
        return jnp.stack(values)[stage, jnp.arange(batch.system_capacity)]

    @property
    def needs_stress(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any(stage.needs_stress for stage in self.stages)

    @property
    def follows_targets(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset().union(*(stage.follows_targets for stage in self.stages))

    def on_device(self) -> "FusedStage":
        if not any(group.hooks.host for group in self.groups):
            return self
        return unsafe_replace(
            self,
            stages=tuple(stage.on_device() for stage in self.stages),
            hooks=self.hooks.on_device(),
            inner=tuple(hooks.on_device() for hooks in self.inner),
        )


__all__ = ["AbstractDynamics", "FusedStage"]
