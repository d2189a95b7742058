"""`run` and `advance` over several devices, for a batch of fixed systems.

Systems are dealt to the devices by cost. Each device has a batch of its own, in which an unchanged driver
takes the steps, in a thread: no step waits for another device, and none is repeated because a capacity of
another one was too small. The whole run stops and is saved after the same number of steps everywhere, so
that its state and its checkpoints are those of a run on one device, and go on on any number of them.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import driver
from alchemi_jax.dynamics.check import NO_LIMIT
from alchemi_jax.dynamics.devices.calls import HostCalls
from alchemi_jax.dynamics.devices.check import check_hooks, check_memories
from alchemi_jax.dynamics.devices.deal import costs, deal, room_for
from alchemi_jax.dynamics.devices.devices import default_device
from alchemi_jax.dynamics.devices.gather import (
    Places,
    empty_whole,
    named_systems,
    on_device,
    part_of_batch,
    part_of_state,
    whole_batch,
    whole_state,
)
from alchemi_jax.dynamics.devices.proxies import Wrap, engine_of_part
from alchemi_jax.dynamics.devices.records import Merged, idle_row, row_levels
from alchemi_jax.dynamics.devices.team import Deposit, PartSaver, Stopped, Team
from alchemi_jax.dynamics.driver import Run
from alchemi_jax.dynamics.finish import finalize, with_reason_texts
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.init import prepare_batch
from alchemi_jax.dynamics.interrupt import Interrupted, carry_state, in_notebook, interrupted
from alchemi_jax.dynamics.origin import Origin
from alchemi_jax.dynamics.out_of_memory import explain_out_of_memory
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.resume import merge_all
from alchemi_jax.dynamics.saver import Saver
from alchemi_jax.dynamics.shrink import ShrinkingRun
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.host_calls import host_hooks
from alchemi_jax.parameters import as_key
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


class OverDevices:
    """A run of a batch, or of a state, over several devices.

    Args:
        engine: with all its hooks, which are open. begun: the state from which it goes on; None: it begins
            with the batch. shrinks: as for `advance`. finalizes: whether the batch of the end is asked for.
    """

    def __init__(
        self,
        engine: Engine,
        batch: Batch,
        devices: tuple[Any, ...],
        key: PRNGKeyArray | None,
        saver: Saver | None,
        begun: DynamicsState | None = None,
        shrinks: bool = False,
        finalizes: bool = True,
    ):
        check_hooks(engine)
        self.engine, self.key, self.begun = engine, as_key(key), begun
        self.shrinks, self.finalizes = shrinks, finalizes
        self.whole = unsafe_replace(prepare_batch(engine, batch), meta=batch.meta) if begun is None else batch
        check_memories(engine, self.whole)
        self.systems = named_systems(self.whole) if begun is None else None
        required, self.needs, self.builder = engine.model.requirements, None, None
        if required.cutoff is not None:
            self.needs = nl.list_needs(self.whole, required.cutoff, required.skin, required)
            if begun is None:
                nl.check_needs(self.whole, self.needs, required.cutoff, required.skin)
                sizes = nl.guess_sizes(
                    self.whole, required.cutoff, required.skin, waiting=self.needs, requirements=required
                )
                # As in one batch of all: who makes the lists must not depend on the number of devices.
                self.builder = sizes.builder
        self.rows = deal(costs(engine, self.whole, self.needs), len(devices))
        recording = [
            ((g, i), group, entry.hook)
            for g, group in enumerate(engine.groups)
            for i, entry in enumerate(group.hooks.recording)
        ]
        self.room = room_for(self.whole, self.rows, spare=bool(recording))
        default = default_device()
        self.team = Team([None if d == default else d for d in devices[: len(self.rows)]], saver)
        self.team.inbox, self.team.write = self, self._save
        hooks = [h for h in host_hooks(engine.groups) if not isinstance(h, CheckpointHook)]
        self.calls = HostCalls(engine, self.rows, self.team) if hooks else None
        places = Places(self.whole, self.rows)
        self.merged = {
            where: Merged(
                hook,
                row_levels(engine, group, hook, self.whole),
                places,
                functools.partial(self._idle, where),
            )
            for where, group, hook in recording
        }
        n, self.interrupted = len(self.rows), False
        self.engines: list[Any] = [None] * n
        #: Of each part, where it begins and what it has reached, without the list, and what it ends with.
        self.first: list[Any] = [None] * n
        self.states: list[Any] = [None] * n
        self.batches: list[Any] = [None] * n

    # -- in the caller's thread --------------------------------------------------------------------

    def run(self, n_steps: int) -> Batch | None:
        """At most so many steps more; the batch of the end if it is asked for.

        Raises:
            Whatever ends the run early, with the state reached as its `state`; Interrupted after Ctrl-C.
        """
        works = [functools.partial(self._work, n_steps, k) for k in range(len(self.rows))]
        try:
            self.team.run(works)
            self._flush()
            if self.team.stopping:
                raise Interrupted(f"{name_of(self.engine)} was told to stop")
        except BaseException as e:
            try:
                self._flush()
            except Exception as second:
                e.add_note(f"while the rows recorded so far were written: {second}")
            if not isinstance(e, KeyboardInterrupt) or isinstance(e, Interrupted):
                self._carry(e)
                raise
            steps = max(self.team.steps)
            text = f"{name_of(self.engine)} was interrupted after step {steps}"
            if any(state is None for state in self.states):
                raise
            if not in_notebook():
                raise interrupted(e, text, self.state()) from e
            self.interrupted = True
            warnings.warn(f"{text}; this is the state so far.", RuntimeWarning, stacklevel=5)
        if not self.finalizes:
            return None
        if any(batch is None for batch in self.batches):
            return finalize(self.engine, self.state())
        return with_reason_texts(self.engine, whole_batch(self.whole, self.rows, self.batches))

    def state(self) -> DynamicsState:
        """The state of all systems that was reached."""
        return self._gather(self.states)

    def _gather(self, states: list[DynamicsState]) -> DynamicsState:
        whole = self.begun
        if whole is None:
            whole = self.begun = unsafe_replace(
                empty_whole(self.engine, self.whole, self.key), origin=Origin(self.engine)
            )
        return whole_state(whole, self.rows, states)

    def _carry(self, error: BaseException) -> None:
        if any(state is None for state in self.states):
            return
        # Of the part alone.
        vars(error).pop("state", None)
        carry_state(error, self.state())

    def _save(self, deposits: list[Deposit]) -> None:
        """Save the run; all parts have taken the same number of steps, or have ended."""
        self._flush()
        if self.team.saver is not None:
            whole = [merge_all(d.states, d.rest.get("stayed", [])) for d in deposits]
            self.team.saver.save([self._gather(whole)], {})

    def _flush(self) -> None:
        """Write the rows that wait, also where some parts have none."""
        for merged in self.merged.values():
            last = merged.ready(set())
            if last is not None:
                merged.take(last)()

    def _idle(self, where: tuple[int, int], part: int) -> list[np.ndarray]:
        engine, (group, number) = self.engines[part], where
        state = self.first[part] if self.states[part] is None else self.states[part]
        group = engine.groups[group]
        return idle_row(engine, group, group.hooks.recording[number], state)

    # -- what the team asks --------------------------------------------------------------------------

    def next_call(self) -> Callable[[], None] | None:
        """See `Inbox`."""
        running = self.team.running
        call = None if self.calls is None else self.calls.next_call(running)
        if call is not None:
            return call
        for merged in self.merged.values():
            last = merged.ready(running)
            if last is not None:
                return merged.take(last)
        return None

    def end(self, part: int) -> None:
        """See `Inbox`; who is running the team knows."""

    def mark(self, part: int, step: int) -> None:
        """See `Inbox`."""
        if self.calls is not None:
            self.calls.mark(part, step)

    # -- in the threads of the parts -----------------------------------------------------------------

    def _write_rows(self, part: int, where: tuple[int, int], hook: Any, rows: Any) -> None:
        with self.team.changed:
            self.merged[where].deposit(part, rows)
            self.team.changed.notify_all()

    def _work(self, n_steps: int, part: int, saver: PartSaver) -> None:
        rows, device = self.rows[part], self.team.devices[part]
        wrap = Wrap(
            lambda *call: None if self.calls is None else self.calls.deposit(part, *call),
            functools.partial(self._write_rows, part),
        )
        engine = self.engines[part] = engine_of_part(self.engine, wrap, device, rows, self.room.systems)
        if self.systems is not None:
            batch = part_of_batch(self.systems, rows, self.room)
            state, report = driver.init(engine, batch, self.key, self.builder, self.needs)
        else:
            report = None
            state = part_of_state(engine, on_device(self.begun, device), rows, self.room)
        self.first[part] = unsafe_replace(state, neighbors=None, records=())
        run = Run(engine, state, saver, report)
        walk: Any = ShrinkingRun(run) if self.shrinks else run
        try:
            with explain_out_of_memory(engine, lambda: run.with_names().batch):
                walk.advance(min(run.report.step + n_steps, NO_LIMIT))
        except BaseException as e:
            try:
                run.drain()
            except Stopped:
                pass
            except Exception as second:
                e.add_note(f"while the rows recorded so far were written: {second}")
            walk.restore()
            self.states[part] = run.with_names()
            raise
        run.drain()
        walk.restore()
        state = run.with_names()
        if self.calls is not None:
            self.calls.end(part, int(state.step_count), state.batch.to_host())
        self.states[part] = state
        self.team.deposit(part, Deposit([state], {}, True))
        if self.finalizes:
            self.batches[part] = finalize(engine, state)


__all__ = ["OverDevices"]
