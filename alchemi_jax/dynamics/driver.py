"""The driver: it runs compiled segments and calls the host between them.

A run is a chain of compiled segments. A segment takes steps until the next step at which a host hook
is due, a system converged that a hook waits for, a buffer of rows is full, a capacity was too small,
or it took about a quarter of a second (so that Ctrl-C is heard). It returns the new state and one
small array of numbers, the report, which is all that the host reads. On overflow the segment is
replayed, with a larger capacity, from the state that the driver still has.

Host hooks at the boundaries of a step are called between segments, on the state that the same
compiled code made with or without them. For hooks in the middle of a step, that step is run in parts.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.check import check_per_system, check_systems
from alchemi_jax.dynamics.finish import warn_failed
from alchemi_jax.dynamics.partitioned import Partitioned
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.segments import (
    Report,
    compiled_entry,
    compiled_initial_state,
    compiled_phases,
    compiled_report,
    compiled_segment,
    evaluate_fresh,
)
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.status import within
from alchemi_jax.dynamics.step import STEP, HooksAt
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.groups import Group, in_order
from alchemi_jax.hooks.host_calls import host_context, host_hooks
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import is_traced


_FIRST_SEGMENT = 128
_SECONDS = 0.25
NO_LIMIT = int(np.iinfo(np.int32).max)
"""A number of steps that no run reaches."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped by hand (Ctrl-C). `state` is what it had reached, to look at or to go on from."""

    state: DynamicsState


def init(
    engine: Engine,
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
    check_systems(engine, batch)
    for part in engine.parts:
        check_per_system(part, batch)
    device, meta = Partitioned(engine.on_device()), batch.meta
    batch = jax.device_put(batch)
    state = compiled_initial_state(device, batch, jax.random.key(0) if key is None else key)
    neighbors = nl.unbuilt_list(batch, engine.model.requirements, builder, waiting)
    state = unsafe_replace(state, neighbors=neighbors)
    state, _ = evaluate_fresh(device, state)
    state = unsafe_replace(state, batch=state.batch.with_meta(meta))
    warn_failed(engine.groups, state.batch)
    return state


class Run:
    """One call of `advance`: a state, what the host knows of it, and the hooks around it.

    Attributes:
        engine: with all its hooks. `device`: what compiled code sees of it.
        state: reached so far. `meta`: names and info of its systems. `report`: numbers of it.
    """

    def __init__(self, engine: Engine, state: DynamicsState):
        self.engine = engine
        self.compiled = engine.on_device()
        self.device = Partitioned(self.compiled)
        self.groups = engine.groups
        self.meta = state.batch.meta
        self.put(state)
        self.cap = _FIRST_SEGMENT
        self.drained = time.perf_counter()
        traced = [s for s in DynamicsStage if any(group.hooks.any_traced(s) for group in self.groups)]
        # A host hook sees its stage after the traced hooks of that stage and before whatever follows.
        edge = {DynamicsStage.ON_CONVERGE}
        if DynamicsStage.BEFORE_STEP not in traced:
            edge.add(DynamicsStage.BEFORE_STEP)
        if DynamicsStage.ON_CONVERGE not in traced:
            edge.add(DynamicsStage.AFTER_STEP)
        self.edge = edge
        hooks = host_hooks(self.groups)
        self.has_host_hooks = bool(hooks)
        self.before = [h for h in hooks if self._runs(h, {DynamicsStage.BEFORE_STEP} & edge)]
        self.after = [h for h in hooks if self._runs(h, {DynamicsStage.AFTER_STEP} & edge)]
        self.inside = [h for h in hooks if self._runs(h, set(DynamicsStage) - edge)]
        self.stop_on_convergence = any(self._runs(h, {DynamicsStage.ON_CONVERGE}) for h in hooks)

    @staticmethod
    def _runs(hook: Any, stages: set[DynamicsStage]) -> bool:
        return any(runs_on(hook, stage) for stage in stages)

    def put(self, state: DynamicsState, report: Report | None = None) -> None:
        """Goes on from another state."""
        self.state = state
        self.report = Report(compiled_report(self.device, state)) if report is None else report

    def with_names(self) -> DynamicsState:
        """The state, with names and info of its systems."""
        return unsafe_replace(self.state, batch=self.state.batch.with_meta(self.meta))

    def evaluate_fresh(self) -> None:
        """Evaluates systems that have entered; those that fail are named."""
        known = self.state.batch.failed
        state, report = evaluate_fresh(self.device, self.state)
        self.put(state, report)
        if report.failed:
            warn_failed(self.groups, self.with_names().batch, known)

    def restore(self) -> None:
        """All systems are where they were when the run began."""

    # -- steps -----------------------------------------------------------------------------------

    def advance(self, stop: int, min_active: int = 0) -> None:
        """Steps until `stop` completed ones, or until all systems but `min_active` are finished."""
        self.min_active = np.int32(min_active)
        while self.report.step < stop and self.report.active > min_active:
            step = self.report.step
            self._call(DynamicsStage.BEFORE_STEP)
            if any(step % h.frequency == 0 for h in self.inside):
                self._step_in_parts()
            else:
                self._run_segment(min(stop, self._next_look(step)))
            if self.report.step > step:
                last = self.report.step - 1
                self._call(DynamicsStage.AFTER_STEP, last)
                self._call(DynamicsStage.ON_CONVERGE, last)

    def _next_look(self, step: int) -> int:
        """The first number of completed steps, beyond `step`, at which the host has something to do."""
        looks = [step + self.cap]
        looks += [(step // h.frequency + 1) * h.frequency for h in self.before + self.inside]
        looks += [-(-step // h.frequency) * h.frequency + 1 for h in self.after]
        return min(looks)

    def _run_segment(self, stop: int) -> None:
        started = time.perf_counter()
        wait = np.bool_(self.stop_on_convergence)
        while True:
            state, numbers = compiled_segment(self.device, self.state, np.int32(stop), wait, self.min_active)
            report = Report(numbers)
            if not report.overflow:
                break
            self._grow(state)
        self._accept(state, report)
        took = time.perf_counter() - started
        if took < _SECONDS:
            self.cap = min(2 * self.cap, 1 << 20)
        elif took > 4 * _SECONDS:
            self.cap = max(self.cap // 2, 1)

    def _step_in_parts(self) -> None:
        """One step, stopping at each stage at which a host hook in the middle of it is due."""
        step = self.report.step
        due = [h for h in self.inside if step % h.frequency == 0]
        cuts = {
            i + 1: phase.stage
            for i, phase in enumerate(STEP)
            if isinstance(phase, HooksAt)
            and phase.stage not in self.edge
            and any(runs_on(h, phase.stage) for h in due)
        }
        at: DynamicsState | StepCarry = self.state
        done = 0
        for cut in [*cuts, len(STEP)]:
            while True:
                carry, numbers = compiled_phases(self.compiled, at, done, cut)
                report = Report(numbers)
                if not report.overflow:
                    break
                # The list is the same function of its references, in whichever part it is renewed.
                larger = self._grow(carry.state)
                held = at.state if isinstance(at, StepCarry) else at
                held = held.replace(neighbors=larger)
                at = dataclasses.replace(at, state=held) if isinstance(at, StepCarry) else held
            at, done = carry, cut
            if cut in cuts:
                self._call_hooks(carry, cuts[cut], step)
        self._accept(carry.state, report)

    def _grow(self, overflowed: DynamicsState) -> nl.NeighborList:
        held, wanted = self.state.neighbors, overflowed.neighbors
        assert held is not None
        assert wanted is not None
        larger = nl.enlarge(held, np.asarray(wanted.needs))
        self.state = self.state.replace(neighbors=larger)
        return larger

    def _accept(self, state: DynamicsState, report: Report) -> None:
        before, self.state = self.state, state
        if report.failed > self.report.failed:
            warn_failed(self.groups, self.with_names().batch, before.batch.failed)
        self.report = report
        # A step in parts is taken without asking for room.
        most = len(DynamicsStage)
        full = any(2 * n > b.capacity - most for n, b in zip(report.counts, state.records, strict=True))
        if full or time.perf_counter() - self.drained > 1.0:
            self.drain()

    def drain(self) -> None:
        """Rows that wait on the device go to their hooks."""
        self.drained = time.perf_counter()
        if not any(self.report.counts):
            return
        held_hooks = [held for group in self.groups for held in group.hooks.recording]
        buffers = jax.device_get(self.state.records)
        empty = [unsafe_replace(b, count=jnp.zeros((), jnp.int32)) for b in self.state.records]
        self.state = unsafe_replace(self.state, records=tuple(empty))
        self.report.counts = np.zeros_like(self.report.counts)
        for held, buffer in zip(held_hooks, buffers, strict=True):
            n = int(buffer.count)
            if n:
                rows = jax.tree.map(lambda x, n=n: x[:n], buffer.rows)
                when = f"writing rows up to step {self.report.step}"
                with user_errors(f"{name_of(held.hook)}.write", "hook"), note_errors(held.hook, when):
                    held.hook.write(rows)

    # -- calling host hooks ----------------------------------------------------------------------

    def _call(self, stage: DynamicsStage, step: int | None = None) -> None:
        """The host hooks of a stage at the edge of a step."""
        step = self.report.step if step is None else step
        if not self.has_host_hooks or stage not in self.edge:
            return
        if not any(g.hooks.host_due(stage, step) for g in self.groups):
            return
        if stage is DynamicsStage.ON_CONVERGE and not self.report.newly:
            return
        state = self.state
        if stage is DynamicsStage.BEFORE_STEP:
            if self.engine.n_stages > 1:
                # To be seen, not to go on from: the step does this itself, and an observer changes no bit.
                state = compiled_entry(self.device, state)
            active, code = self.engine.active(state.batch) & ~state.converged_at_start, state.batch.status
        else:
            active, code = state.moved, _code_of_last_step(self.engine, state)
        self._call_hooks(_carry_between_steps(state, active, code), stage, step)

    def _call_hooks(self, carry: StepCarry, stage: DynamicsStage, step: int) -> None:
        for group in in_order(self.groups, stage):
            if not group.hooks.host_due(stage, step) or not self._concerns(carry, stage, group):
                continue
            ctx = unsafe_replace(self.engine._build_context(carry, stage, group), step_count=step)
            if group.hooks.reads_batch(stage, step):
                ctx = host_context(ctx, self.meta, step)
            group.hooks.run_host(ctx, stage, step)

    def _concerns(self, carry: StepCarry, stage: DynamicsStage, group: Group) -> bool:
        """Whether a system is in the group's parts of the pipeline."""
        if group.codes is None:
            return True
        converges = stage is DynamicsStage.ON_CONVERGE
        mask = carry.state.newly_converged if converges else carry.active
        return bool(np.any(within(group, mask, carry.code)))


def _code_of_last_step(engine: Engine, state: DynamicsState) -> Array:
    """The part in which each system that the last step moved was when that step began."""
    batch = state.batch
    left = (batch.status == engine.exit_status) | (batch.stage_steps == 0)
    return jnp.where(left & (state.came_from >= 0), state.came_from, batch.status)


def _carry_between_steps(state: DynamicsState, active: Array, code: Array) -> StepCarry:
    """A carry for host hooks between steps."""
    return StepCarry(state, state.batch, None, code, active, None, jnp.ones((), bool))
