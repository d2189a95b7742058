"""The segment loop: the only file that knows host from device.

A run is a chain of compiled segments. A segment takes steps until the next step at which a host hook
is due, a system converged that somebody waits for, a buffer of rows is full, a neighbor list
overflowed, or it took about half a second (so that Ctrl-C is heard). It returns the new state and one
small array of numbers, the report, which is all that the host reads. On overflow the segment is
replayed, with a larger list, from the state that the driver still holds.

Host hooks at the boundaries of a step are called between segments, on the state that the same
compiled code made with or without them. For hooks in the middle of a step, that step is run in parts.
"""

import builtins
import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.admission import enter_stage
from alchemi_jax.dynamics.callbacks import host_context
from alchemi_jax.dynamics.groups import in_order
from alchemi_jax.dynamics.loop import should_continue
from alchemi_jax.dynamics.partitioned import Partitioned
from alchemi_jax.dynamics.stage import STEP, DynamicsStage
from alchemi_jax.dynamics.start import enlarge_list, finalize, warn_failed
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.errors import name_of, user_errors
from alchemi_jax.hooks.set import note_errors, runs_on
from alchemi_jax.systems.batch import Batch, Metadata
from alchemi_jax.systems.levels import unsafe_replace


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics

_FIRST_SEGMENT = 128
_SECONDS = 0.25
_ALWAYS = np.iinfo(np.int32).max


# -- segments ------------------------------------------------------------------------------------


class _Report:
    """The few numbers that the host reads after a segment."""

    def __init__(self, numbers: Array):
        n = np.asarray(numbers)
        self.step, self.active, self.newly, self.failed, self.overflow = (int(x) for x in n[:5])
        self.counts = n[5:]


def _report(engine: "AbstractDynamics", state: DynamicsState) -> Array:
    numbers = [
        state.step_count,
        engine.active(state.batch).sum(dtype=jnp.int32),
        state.newly_converged.sum(dtype=jnp.int32),
        (state.failed_at >= 0).sum(dtype=jnp.int32),
        jnp.asarray(state.overflow, jnp.int32),
        *(buffer.count for buffer in state.records),
    ]
    return jnp.stack(numbers)


#: 7 to 30 % faster pair loops on a CPU with AVX-512; other backends do not look at it.
_WIDE = {"xla_cpu_prefer_vector_width": 512}
_compiled = functools.partial(jax.jit, compiler_options=_WIDE)
#: equinox passes the options on, its types do not say so.
_filter_jit: Any = eqx.filter_jit


@_compiled
def _segment(
    engine: "Partitioned[AbstractDynamics]", state: DynamicsState, stop: Any, wait: Any, few: Any
) -> tuple[DynamicsState, Array]:
    return run_segment(engine.combine(), state, stop, wait, few)


def run_segment(
    engine: "AbstractDynamics", state: DynamicsState, stop: Any, wait: Any, few: Any
) -> tuple[DynamicsState, Array]:
    """Steps until `stop` or what else `going` looks at, and the report."""
    state = state.replace(newly_converged=jnp.zeros_like(state.newly_converged))
    state = jax.lax.while_loop(
        lambda s: should_continue(engine, s, stop, wait, few), lambda s: engine.step(s), state
    )
    return state, _report(engine, state)


_report_of = jax.jit(lambda engine, state: _report(engine.combine(), state))
_admitted = eqx.filter_jit(enter_stage)


@functools.partial(_filter_jit, compiler_options=_WIDE)
def _part(
    engine: "AbstractDynamics", at: DynamicsState | StepCarry, first: int, last: int
) -> tuple[StepCarry, Array]:
    """Pieces first .. last-1 of a step."""
    flow = engine._begin(enter_stage(engine, at)) if isinstance(at, DynamicsState) else at
    flow = engine._through(flow, STEP[first:last])
    if last == len(STEP):
        flow = engine._end(flow)
    return flow, _report(engine, flow.state)


def grow_lists(
    moving: Callable[..., tuple[DynamicsState, Array]],
    apart: "Partitioned[AbstractDynamics]",
    state: DynamicsState,
    incoming: Batch,
    move: Any,
    sizes: nl.ListSizes | None = None,
) -> tuple[DynamicsState, _Report]:
    """A state with rows moved by compiled code, and its report; again, with larger lists, if one overflowed.

    Args:
        moving: a compiled function of the arguments that follow.
        sizes: of the new neighbor list; by default those that the state's has.
    """
    held = state.neighbors
    sizes = held.sizes if sizes is None and held is not None else sizes
    while True:
        after, numbers = moving(apart, unsafe_replace(state, records=()), incoming, move, list_sizes=sizes)
        report = _Report(numbers)
        if sizes is None or not report.overflow:
            return after, report
        assert after.neighbors is not None
        sizes = nl.grow(sizes, np.asarray(after.neighbors.needs))


def _stage_of_last_step(engine: "AbstractDynamics", state: DynamicsState) -> Array:
    """The stage that each system which the last step moved was in when that step began."""
    batch = state.batch
    left = (batch.status == engine.exit_status) | (batch.stage_steps == 0)
    return jnp.where(left, state.came_from, batch.status)


class _Run:
    """One call of `advance`: a state, what the host knows of it, and the hooks around it."""

    def __init__(self, engine: "AbstractDynamics", state: DynamicsState):
        self.engine = engine
        self.compiled = engine.on_device()
        self.apart = Partitioned(self.compiled)
        self.groups = engine.groups
        self.meta: Metadata | None = state.batch.meta
        self.put(unsafe_replace(state, batch=unsafe_replace(state.batch, meta=None)))
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
        hooks = [held.hook for group in self.groups for held in group.hooks.host]
        self.has_host_hooks = bool(hooks)
        self.before = [h for h in hooks if self._runs(h, {DynamicsStage.BEFORE_STEP} & edge)]
        self.after = [h for h in hooks if self._runs(h, {DynamicsStage.AFTER_STEP} & edge)]
        self.inside = [h for h in hooks if self._runs(h, set(DynamicsStage) - edge)]
        self.waiting = any(self._runs(h, {DynamicsStage.ON_CONVERGE}) for h in hooks)

    @staticmethod
    def _runs(hook: Any, stages: set[DynamicsStage]) -> bool:
        return any(runs_on(hook, stage) for stage in stages)

    def put(self, state: DynamicsState, report: _Report | None = None) -> None:
        """Goes on from another state."""
        self.state = state
        self.report = _Report(_report_of(self.apart, state)) if report is None else report

    def advance(self, stop: int, few: int = 0) -> None:
        """Steps until `stop` completed ones, or until all systems but `few` are finished."""
        self.few = np.int32(few)
        while self.report.step < stop and self.report.active > few:
            step = self.report.step
            self._call(DynamicsStage.BEFORE_STEP)
            if any(step % h.frequency == 0 for h in self.inside):
                self._step_in_parts()
            else:
                self._one_segment(min(stop, self._next_look(step)))
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

    def _one_segment(self, stop: int) -> None:
        begun = time.perf_counter()
        wait = np.bool_(self.waiting)
        while True:
            state, numbers = _segment(self.apart, self.state, np.int32(stop), wait, self.few)
            report = _Report(numbers)
            if not report.overflow:
                break
            self._grow(state)
        self._accept(state, report)
        took = time.perf_counter() - begun
        if took < _SECONDS:
            self.cap = min(2 * self.cap, 1 << 20)
        elif took > 4 * _SECONDS:
            self.cap = max(self.cap // 2, 1)

    def _step_in_parts(self) -> None:
        """One step, stopping at each stage at which a host hook in the middle of it is due."""
        step = self.report.step
        due = [h for h in self.inside if step % h.frequency == 0]
        cuts = [
            i + 1
            for i, piece in enumerate(STEP)
            if isinstance(piece, DynamicsStage)
            and piece not in self.edge
            and any(runs_on(h, piece) for h in due)
        ]
        at: DynamicsState | StepCarry = self.state
        done = 0
        for cut in [*cuts, len(STEP)]:
            while True:
                flow, numbers = _part(self.compiled, at, done, cut)
                report = _Report(numbers)
                if not report.overflow:
                    break
                # The list is the same function of its references, in whichever part it is renewed.
                larger = self._grow(flow.state)
                held = at.state if isinstance(at, StepCarry) else at
                held = held.replace(neighbors=larger)
                at = dataclasses.replace(at, state=held) if isinstance(at, StepCarry) else held
            at, done = flow, cut
            if cut < len(STEP):
                self._call_hooks(flow, STEP[cut - 1], step)
        self._accept(flow.state, report)

    def _grow(self, overflowed: DynamicsState) -> nl.NeighborList:
        held, wanted = self.state.neighbors, overflowed.neighbors
        assert held is not None
        assert wanted is not None
        larger = enlarge_list(self.state.batch, held, wanted)
        self.state = self.state.replace(neighbors=larger)
        return larger

    def _accept(self, state: DynamicsState, report: _Report) -> None:
        before, self.state = self.state, state
        if report.failed > self.report.failed:
            warn_failed(self._with_meta(), before)
        self.report = report
        full = any(2 * n > b.capacity for n, b in zip(report.counts, state.records, strict=True))
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

    def restore(self) -> None:
        """All systems are where they were."""

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
            # The step does this itself; here it is done to be looked at.
            state = _admitted(self.compiled, state) if self.engine.n_stages > 1 else state
            flow = StepCarry(state, state.batch, None, self.engine.active(state.batch))
        else:
            begun = state.batch
            if self.engine.n_stages > 1:
                begun = begun.replace(status=_stage_of_last_step(self.engine, state))
            flow = StepCarry(state, begun, None, state.moved)
        self._call_hooks(flow, stage, step)

    def _call_hooks(self, flow: StepCarry, stage: Any, step: int) -> None:
        for group in in_order(self.groups, stage):
            if not group.hooks.host_due(stage, step):
                continue
            ctx = self.engine._build_context(flow, stage, group)
            mine = ctx.converged_mask if stage is DynamicsStage.ON_CONVERGE else ctx.active_mask
            if group.codes is not None and not np.any(mine):
                continue
            ctx = unsafe_replace(ctx, step_count=step)
            if group.hooks.reads_batch(stage, step):
                ctx = host_context(ctx, self.meta, step)
            group.hooks.run_host(ctx, stage, step)

    def _with_meta(self) -> DynamicsState:
        return unsafe_replace(self.state, batch=unsafe_replace(self.state.batch, meta=self.meta))


class Interrupted(KeyboardInterrupt):
    """A run was stopped by hand (Ctrl-C). `state` is what it had reached, to look at or to go on from."""

    state: DynamicsState


def _in_notebook() -> bool:
    return hasattr(builtins, "__IPYTHON__")


def advance(
    engine: "AbstractDynamics", state: DynamicsState, n_steps: int, shrink: bool = False
) -> DynamicsState:
    """See `AbstractDynamics.advance`."""
    run = _Run(engine, state)
    walk: Any = run
    if shrink:
        from alchemi_jax.dynamics.shrink import Shrinking

        walk = Shrinking(run)
    with engine:
        try:
            walk.advance(min(run.report.step + int(n_steps), _ALWAYS))
        except BaseException as e:
            try:
                run.drain()
            except Exception as second:
                e.add_note(f"while the rows recorded so far were written: {second}")
            walk.restore()
            if not isinstance(e, KeyboardInterrupt):
                raise
            text = f"{name_of(engine)} was interrupted after step {run.report.step}"
            if _in_notebook():
                warnings.warn(f"{text}; this is the state so far.", RuntimeWarning, stacklevel=3)
                return run._with_meta()
            stopped = Interrupted(f"{text}; the state so far is the `state` of this exception.")
            stopped.state = run._with_meta()
            for note in getattr(e, "__notes__", ()):
                stopped.add_note(note)
            raise stopped from e
        run.drain()
        walk.restore()
    return run._with_meta()


def with_budget(engine: "AbstractDynamics", n_steps: int | None) -> "AbstractDynamics":
    """The engine with `n_steps` in place of its own, if given.

    Raises:
        ValueError: if there is no bound for the steps of a system.
    """
    if n_steps is not None:
        engine = dataclasses.replace(engine, n_steps=n_steps)
    if engine.max_steps is None:
        raise ValueError(
            f"{name_of(engine)} has no n_steps: give it to the engine or to run(batch, n_steps=...)."
        )
    return engine


def run(
    engine: "AbstractDynamics", batch: Batch, n_steps: int | None, key: Array | None, shrink: bool
) -> Batch:
    """See `AbstractDynamics.run`."""
    engine = with_budget(engine, n_steps)
    most = engine.max_steps
    assert most is not None
    if shrink:
        from alchemi_jax.dynamics.shrink import check

        # Before anything is compiled.
        check(engine, batch)
    with engine:
        state = engine.init(batch, key=key)
        state = engine.advance(state, int(most), shrink=shrink)
        return finalize(engine, state)
