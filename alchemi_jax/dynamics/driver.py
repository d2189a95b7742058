"""The driver: it runs compiled segments and calls the host between them.

A run is a chain of compiled segments. A segment takes steps until a host hook is due, a system converged and
a hook waits for that, a buffer of rows is full, or a capacity was too small, and for about a quarter of a
second at most (so that Ctrl-C works). It returns the new state and a small array of numbers, the report,
which is all that the host reads. On overflow the capacity grows and the segment is replayed from the state
before it.

Host hooks at the boundaries of a step are called between segments; the compiled code is the same with and
without them. While they are called, the device works on the next segment. For hooks in the middle of a step,
that step is run in parts.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.finish import warn_failed, warn_rescued
from alchemi_jax.dynamics.host_steps import HostSteps, carry_between_steps, code_of_last_step
from alchemi_jax.dynamics.init import init, without_hooks
from alchemi_jax.dynamics.interrupt import Interrupted, carry_state
from alchemi_jax.dynamics.origin import Origin
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.saver import Asked
from alchemi_jax.dynamics.segments import (
    Report,
    compiled_entry,
    compiled_phases,
    compiled_report,
    compiled_segment,
    evaluate_fresh,
)
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.status import advance_status, within
from alchemi_jax.dynamics.step import STEP, HooksAt
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.calls import Due
from alchemi_jax.hooks.groups import Group, in_order
from alchemi_jax.hooks.host_calls import host_context, host_hooks
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.hooks.records import emptied, write_rows
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.shared import others_ended
from alchemi_jax.systems.levels import unsafe_replace


_FIRST_SEGMENT = 128
_SECONDS = 0.25


class SavedPart(Protocol):
    """A part of a run, such as a stream of systems, that has something to save."""

    def saved(self) -> tuple[list[DynamicsState], dict[str, Any]]:
        """States of larger batches, the largest first, and a tree of what else is to be saved."""
        ...


class _Ahead(NamedTuple):
    """A segment that was started before it was asked for: its state, where it stops, what comes out."""

    begin: DynamicsState
    stop: int
    result: tuple[DynamicsState, Int[Array, " numbers"]]


class Run:
    """One call of `advance`: a state, its report, and the hooks to call.

    Attributes:
        engine: with all its hooks. `device`: the engine without host hooks, for compiled code.
        state: the state reached. `meta`: names and info of its systems. `report`: its numbers, which are read
            from it if they are not given.
    """

    def __init__(
        self,
        engine: Engine,
        state: DynamicsState,
        saver: Asked | None = None,
        report: Report | None = None,
    ):
        self.engine, self.saver = engine, saver
        #: What is saved besides the state: of larger batches, and of a stream. The parts of a run add to it.
        self.parts: list[SavedPart] = []
        self.compiled = engine.on_device()
        self.device = Partitioned(self.compiled)
        self.groups = engine.groups
        self.meta = state.batch.meta
        self.host_steps = HostSteps(engine)
        self.put(state, report)
        self.min_active = np.int32(0)
        self.cap = _FIRST_SEGMENT
        self.drained = time.perf_counter()
        # Stages at which host hooks can be called between steps. A host hook is called after the traced hooks
        # of its stage and before what follows, so these stages depend on where there are traced hooks.
        edge = {DynamicsStage.ON_CONVERGE}
        if not self._has_traced(DynamicsStage.BEFORE_STEP):
            edge.add(DynamicsStage.BEFORE_STEP)
        if not self._has_traced(DynamicsStage.ON_CONVERGE):
            edge.add(DynamicsStage.AFTER_STEP)
        self.edge = edge
        hooks = host_hooks(self.groups)
        self.has_host_hooks = bool(hooks)
        self.before = [h for h in hooks if self._runs(h, {DynamicsStage.BEFORE_STEP} & edge)]
        self.after = [h for h in hooks if self._runs(h, {DynamicsStage.AFTER_STEP} & edge)]
        self.inside = [h for h in hooks if self._runs(h, set(DynamicsStage) - edge)]
        self.stop_on_convergence = any(self._runs(h, {DynamicsStage.ON_CONVERGE}) for h in hooks)

    def _has_traced(self, stage: DynamicsStage) -> bool:
        return any(group.hooks.any_traced(stage) for group in self.groups)

    @staticmethod
    def _runs(hook: Any, stages: set[DynamicsStage]) -> bool:
        return any(runs_on(hook, stage) for stage in stages)

    def put(self, state: DynamicsState, report: Report | None = None) -> None:
        """Continue from another state."""
        self.state = state
        self.host_steps.put(state)
        self.ahead: _Ahead | None = None
        self.report = Report(compiled_report(self._bare, state)) if report is None else report

    @functools.cached_property
    def _bare(self) -> Partitioned[Engine]:
        return without_hooks(self.engine)

    def with_names(self) -> DynamicsState:
        """The state, with names and info of its systems, and with the engine that made it."""
        batch = self.state.batch.with_meta(self.meta)
        return unsafe_replace(self.state, batch=batch, origin=Origin(self.engine))

    def evaluate_fresh(self) -> None:
        """Evaluate systems that have entered, and warn about those that fail.

        If others move, it is a step of theirs, in which their hooks are called.
        """
        before, told, step = self.state, self.report, self.report.step
        moves = self.has_host_hooks and self.host_steps.any_moves()
        if moves:
            self._call(DynamicsStage.BEFORE_STEP)
        if moves and self.host_steps.any_due(self.inside, step):
            self._step_in_parts()
        else:
            state, report = evaluate_fresh(self.device, self.state)
            self.put(state, report)
            self._warn(before, told)
        if self.report.step > step:
            self._call(DynamicsStage.AFTER_STEP, step)
            self._call(DynamicsStage.ON_CONVERGE, step)

    def restore(self) -> None:
        """Return all systems to the rows in which the run began. Here they never leave them."""

    # -- steps -----------------------------------------------------------------------------------

    def advance(self, stop: int, min_active: int = 0) -> None:
        """Run until `stop` completed steps, or until at most `min_active` systems are unfinished."""
        self.min_active = np.int32(min_active)
        while self.report.step < stop and self.report.active > min_active:
            if self.saver is not None:
                self._save_if_due(self.saver)
            elif others_ended():
                raise Interrupted(f"{name_of(self.engine)} ends with another process")
            step = self.report.step
            self._call(DynamicsStage.BEFORE_STEP)
            if self.host_steps.any_due(self.inside, step):
                self._step_in_parts()
            else:
                self._run_segment(min(stop, self._next_host_step(step)))
            if self.report.step > step:
                last = self.report.step - 1
                self._start_ahead(stop)
                self._call(DynamicsStage.AFTER_STEP, last)
                self._call(DynamicsStage.ON_CONVERGE, last)

    def _save_if_due(self, saver: Asked) -> None:
        """Save the run if it is time to; it ends here if the hook says so."""
        stops = saver.should_stop()
        if stops or saver.is_due(self.report.step):
            self.save(saver)
        if stops:
            raise Interrupted(f"{name_of(self.engine)} was told to stop")

    def save(self, saver: Asked, ended: bool = False) -> None:
        """Save the run as it is between two steps."""
        self.drain()
        states, rest = [self.state], dict[str, Any]()
        for part in self.parts:
            larger, more = part.saved()
            states, rest = [*larger, *states], rest | more
        saver.save(states, rest, ended)

    def _next_host_step(self, step: int) -> int:
        """The next number of completed steps after `step` at which the host has something to do."""
        steps = [step + self.cap, *self.host_steps.following(step, self.before + self.inside, self.after)]
        if self.saver is not None and (due := self.saver.next_step(step)) is not None:
            steps.append(due)
        return min(steps)

    def _start(self, stop: int) -> tuple[DynamicsState, Int[Array, " numbers"]]:
        """Start a segment. JAX returns at once, and waits when a result is read."""
        stop_early = np.bool_(self.stop_on_convergence)
        return compiled_segment(self.device, self.state, np.int32(stop), stop_early, self.min_active)

    def _start_ahead(self, stop: int) -> None:
        """Start the next segment before the host hooks of this boundary are called, if there is any to call.

        Hooks on the host do not change the state, so it is the segment that follows. If one raises, it is
        forgotten.
        """
        step = self.report.step
        stages = (DynamicsStage.AFTER_STEP, DynamicsStage.ON_CONVERGE)
        if not any(self._is_due(stage, step - 1) for stage in stages):
            return
        done = step >= stop or self.report.active <= self.min_active
        # At BEFORE_STEP hooks ask the device, and would wait for the segment.
        if done or self.host_steps.any_due(self.before + self.inside, step):
            return
        until = min(stop, self._next_host_step(step))
        try:
            self.ahead = _Ahead(self.state, until, self._start(until))
        except jax.errors.JaxRuntimeError:
            # Such as of memory. It is raised when the segment is asked for, after the hooks of this step.
            self.ahead = None

    def _run_segment(self, stop: int) -> None:
        ahead, self.ahead = self.ahead, None
        started = None
        while True:
            if ahead is not None and ahead.begin is self.state and ahead.stop == stop:
                state, numbers = ahead.result
            else:
                started = time.perf_counter()
                state, numbers = self._start(stop)
            report = Report(numbers)
            if not report.overflow:
                break
            self._grow(state)
        self._accept(state, report)
        if started is None:
            # How long it took is not known.
            return
        took = time.perf_counter() - started
        if took < _SECONDS:
            self.cap = min(2 * self.cap, 1 << 20)
        elif took > 4 * _SECONDS:
            self.cap = max(self.cap // 2, 1)

    def _step_in_parts(self) -> None:
        """One step, in parts that end at the stages for which a host hook is due."""
        step = self.report.step
        due = [h for h in self.inside if self.host_steps.any_due([h], step)]
        # Between steps hooks of AFTER_STEP see a step that was counted, so they see that here, too.
        counted = STEP.index(advance_status) + 1
        cuts = {
            counted if phase.stage is DynamicsStage.AFTER_STEP else i + 1: phase.stage
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
                # The list is a function of its references, so it does not matter in which part it is built.
                larger = self._grow(carry.state)
                state = at.state if isinstance(at, StepCarry) else at
                state = state.replace(neighbors=larger)
                at = dataclasses.replace(at, state=state) if isinstance(at, StepCarry) else state
            at, done = carry, cut
            if cut in cuts:
                # All stages of this step, AFTER_STEP too, belong to the step that comes next.
                now = self.host_steps.due(DynamicsStage.BEFORE_STEP, step)
                self._call_hooks(carry, cuts[cut], step, now)
        self._accept(carry.state, report)

    def _grow(self, overflowed: DynamicsState) -> nl.NeighborList:
        """Replace the neighbor list by an empty one with room for what the overflowed state needed."""
        old, overfull = self.state.neighbors, overflowed.neighbors
        assert old is not None
        assert overfull is not None
        # A hook may have changed cells: then what would be too large is an error that names the system.
        nl.check_growth(overflowed.batch.with_meta(self.meta), old, np.asarray(overfull.needs))
        larger = nl.enlarge(old, np.asarray(overfull.needs))
        self.state = self.state.replace(neighbors=larger)
        return larger

    def _accept(self, state: DynamicsState, report: Report) -> None:
        before, self.state = self.state, state
        self.host_steps.put(state)
        told, self.report = self.report, report
        self._warn(before, told)
        # A step in parts is taken without asking for room.
        most = len(DynamicsStage)
        full = any(2 * n > b.capacity - most for n, b in zip(report.counts, state.records, strict=True))
        if full or time.perf_counter() - self.drained > 1.0:
            self.drain()

    def _warn(self, before: DynamicsState, told: Report) -> None:
        """Warn about systems that were rescued or have failed since an earlier state and its report."""
        if self.report.rescued > told.rescued:
            warn_rescued(self.engine, self.with_names(), before)
        if self.report.failed > told.failed:
            warn_failed(self.engine, self.with_names().batch, before.batch.failed)

    def drain(self) -> None:
        """Give the rows that wait on the device to their hooks."""
        self.drained = time.perf_counter()
        if not any(self.report.counts):
            return
        hooks = [entry.hook for group in self.groups for entry in group.hooks.recording]
        buffers = jax.device_get(self.state.records)
        self.state = unsafe_replace(self.state, records=emptied(self.state.records))
        self.report.counts = np.zeros_like(self.report.counts)
        write_rows(hooks, buffers, self.report.step)

    # -- calling host hooks ----------------------------------------------------------------------

    def _call(self, stage: DynamicsStage, step: int | None = None) -> None:
        """Call the host hooks of a stage at the boundary of a step."""
        step = self.report.step if step is None else step
        if not self._is_due(stage, step):
            return
        state = self.state
        if stage is DynamicsStage.BEFORE_STEP:
            if self.engine.n_stages > 1:
                # Only for the hooks: the step does this itself, and observers must not change a run.
                state = compiled_entry(self.device, state)
            active = self.engine.active(state.batch) & ~state.converged_at_start & ~state.fresh
            code = state.batch.status
        else:
            active: Any = np.asarray(state.moved)
            code: Any = code_of_last_step(self.engine, state)
        carry = carry_between_steps(state, active, code)
        self._call_hooks(carry, stage, step, self.host_steps.due(stage, step))

    def _is_due(self, stage: DynamicsStage, step: int) -> bool:
        """Whether a host hook is to be called at a stage between steps."""
        if not self.has_host_hooks or stage not in self.edge:
            return False
        if stage is DynamicsStage.ON_CONVERGE and not self.report.newly:
            return False
        due = self.host_steps.due(stage, step)
        return any(group.hooks.host_due(stage, due) for group in self.groups)

    def _call_hooks(self, carry: StepCarry, stage: DynamicsStage, step: int, due: Due) -> None:
        for group in in_order(self.groups, stage):
            if not group.hooks.host_due(stage, due) or not self._concerns(carry, stage, group):
                continue
            ctx = unsafe_replace(self.engine._build_context(carry, stage, group), step_count=step)
            if group.hooks.reads_batch(stage, due):
                ctx = host_context(ctx, self.meta, step)
            group.hooks.run_host(ctx, stage, step, due)

    def _concerns(self, carry: StepCarry, stage: DynamicsStage, group: Group) -> bool:
        """Whether any system is in the parts of the pipeline that the group belongs to."""
        if group.codes is None:
            return True
        converges = stage is DynamicsStage.ON_CONVERGE
        mask = carry.state.newly_converged if converges else carry.active
        return bool(np.any(within(group, mask, carry.code)))


__all__ = ["Interrupted", "Run", "SavedPart", "carry_state", "init"]
