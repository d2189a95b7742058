"""In-flight refilling: any number of systems pass through a batch of fixed shapes.

The driver runs until enough systems are finished. These go to the sink, the others move to the first rows,
the next systems of the stream take the room, and the driver continues. A system that enters is fresh: it
begins as in `init`, and the next pass of the loop evaluates it. The other systems and their neighbor lists
move as they are, so that their steps do not change, bit for bit.
"""

import dataclasses
import functools
import time
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import driver, shrink
from alchemi_jax.dynamics.check import NO_LIMIT
from alchemi_jax.dynamics.driver import Run
from alchemi_jax.dynamics.final import record_final
from alchemi_jax.dynamics.finish import finalize
from alchemi_jax.dynamics.host_steps import entry_unit
from alchemi_jax.dynamics.out_of_memory import explain_out_of_memory
from alchemi_jax.dynamics.out_of_steps import OutOfSteps, Rows, put
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.refill_share import best_share
from alchemi_jax.dynamics.resume import Begun, budgets_of, name_systems, reopen_all
from alchemi_jax.dynamics.rows import (
    RowPlan,
    capacities,
    move_rows,
    pack_incoming,
    plan_rows,
)
from alchemi_jax.dynamics.saver import Saved
from alchemi_jax.dynamics.segments import Report, jit_loop
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.io.sinks import Sink
from alchemi_jax.io.sinks.layout import meta_from_text, meta_text
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata


#: Share of finished systems at which a run is refilled for the first time.
FIRST_SHARE = 0.4
#: Cost of a refill in steps of the batch. It is not measured in a run: when systems enter, and with it the
#: order in which they finish, must not depend on how busy the machine is.
REFILL = 10.0
#: Numbers of a refilled run that a checkpoint keeps.
_NUMBERS = ("steps_taken", "share", "judged", "aligned", "places", "turn", "ended")


@dataclasses.dataclass
class Traffic:
    """What a refilled run did.

    Attributes:
        systems: number of systems that finished; `refills`, `steps`: of the batch.
        occupancy: mean share of places with an unfinished system, over all steps.
        seconds: total time; `host_seconds`: the part of it in which no compiled step was running.
        busy: of each device the part of the time in which it had systems; empty for one device.
    """

    systems: int = 0
    refills: int = 0
    steps: int = 0
    occupancy: float = 0.0
    seconds: float = 0.0
    host_seconds: float = 0.0
    busy: list[float] = dataclasses.field(default_factory=list)


class First(NamedTuple):
    """The systems with which a batch begins, the pairs of each, the places that it has, and what lists need
    of all that wait."""

    host: HostBatch
    pairs: Int[np.ndarray, " systems"]
    places: int
    needs: nl.Needs | None


def take_first(stream: Stream) -> First | None:
    """The first systems of a batch; None if there is none."""
    most = stream.places if stream.shares > 1 else stream.sampler.max_systems
    found = stream.take(most, stream.max_atoms, stream.sampler.max_pairs or np.inf)
    if found is None:
        return None
    places = most if stream.more or stream.shares > 1 else len(found[0])
    needs = stream.needs
    if needs is not None and len(needs.images) < places:
        needs = None
    return First(*found, places, needs)


class RefilledRun:
    """A refilled run: the run of the driver, the stream of systems, and the sizes of those in the batch."""

    def __init__(
        self,
        engine: Engine,
        stream: Stream,
        sink: Sink,
        key: PRNGKeyArray | None,
        saver: Any = None,
        saved: Saved | None = None,
        first: First | None = None,
    ):
        """`saver`: a `Saver`, or what asks like one. `first`: of one of several batches."""
        self.engine, self.stream, self.sink, self.saver = engine, stream, sink, saver
        self.traffic = Traffic()
        self.steps_taken = 0.0
        self.exchanging = False
        #: Numbers of steps of the systems that left last.
        self.recent: deque[int] = deque(maxlen=10 * stream.sampler.max_systems)
        self.share = stream.sampler.refill_share or FIRST_SHARE
        #: Number of systems that had left when the share was chosen last.
        self.judged = 0
        #: Systems enter at this step, and then whole units later.
        self.unit, self.aligned = entry_unit(engine), 0
        #: Places in all steps so far, and the step at which the present turn began.
        self.places, self.turn = 0, 0
        self.ended = False
        #: Of a batch that had become smaller when it was saved.
        self.begun: Begun | None = None
        self.out_of_steps: OutOfSteps | None = None
        if saver is not None and saver.out_of_steps is not None:
            self.out_of_steps = OutOfSteps(saver.out_of_steps)
        self.started = time.perf_counter()
        if saver is not None and saved is not None:
            self._go_on(saved)
            return
        self.driver: Run | None = None
        first = take_first(stream) if first is None and stream.shares == 1 else first
        if first is None:
            return
        host, self.pairs = first.host, first.pairs
        batch = Batch.from_host(host, stream.max_atoms, first.places, largest=stream.largest)
        self.sizes = host.atoms_per_system
        if stream.sampler.shrink:
            shrink.check(engine, batch)
        self._drive(*driver.init(engine, batch, key, None, waiting=first.needs))

    def _drive(self, state: DynamicsState, report: Report | None = None) -> None:
        self.driver = Run(self.engine, state, self.saver, report)
        self.driver.parts.append(self)

    @property
    def reached(self) -> DynamicsState | None:
        """The state that was reached; None if there were no systems."""
        return None if self.driver is None else self.driver.with_names()

    # -- checkpoints -----------------------------------------------------------------------------

    def saved(self) -> tuple[list[DynamicsState], dict[str, Any]]:
        """What a checkpoint keeps of the stream."""
        assert self.driver is not None
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        refilled = numbers | {
            "sizes": self.sizes,
            "pairs": self.pairs,
            "recent": list(self.recent),
            "traffic": dataclasses.asdict(self.traffic),
            "names": [meta_text(meta).decode() for meta in self._all_names()],
            "out_of_steps": [] if self.out_of_steps is None else list(self.out_of_steps.sums),
            "waiting": 0 if self.out_of_steps is None else len(self.out_of_steps.waiting),
            "budgets": budgets_of(self.engine),
        }
        return [], {"stream": self.stream.saved(), "refilled": refilled}

    def _all_names(self) -> Metadata:
        """Names of the systems of the whole batch, also while it is smaller."""
        assert self.driver is not None
        smaller = [
            part for part in self.driver.parts if isinstance(part, shrink.ShrinkingRun) and part.larger
        ]
        meta = smaller[0].larger[0][1] if smaller else self.driver.meta
        return meta.filled(len(self.sizes))

    def save_end(self) -> None:
        """Save the run after its last step."""
        if self.saver is not None and self.driver is not None and not self.ended:
            self.ended = True
            self.driver.save(self.saver, ended=True)

    def _go_on(self, saved: Saved) -> None:
        """Go on from a checkpoint."""
        found = saved.rest["refilled"]
        for name in _NUMBERS:
            setattr(self, name, found[name])
        self.sizes, self.pairs = np.asarray(found["sizes"]), np.asarray(found["pairs"])
        self.recent.extend(found["recent"])
        self.traffic = Traffic(**found["traffic"])
        stayed = [np.asarray(rows) for rows in saved.rest.get("stayed", [])]
        meta = Metadata(meta_from_text(text.encode()) for text in found["names"])
        begun = Begun(name_systems(saved.states, stayed, meta), stayed, saved.rest.get("min_active"))
        assert self.out_of_steps is not None
        self.out_of_steps.sums = list(found["out_of_steps"])
        in_flight = np.zeros(0, int)
        if not self.ended:
            in_flight = np.asarray(begun.states[0].batch.system_id)[: len(self.sizes)]
        if found["waiting"] or found["budgets"] != budgets_of(self.engine):
            self.out_of_steps.find(self.engine, begun.states[0], str(saved.at.path), in_flight)
        if not self.ended:
            # A batch that others enter is not a smaller one.
            shrinks = self.stream.sampler.shrink and not self._more()
            begun = reopen_all(self.engine, begun, saved, shrinks)
        if self.stream.sampler.shrink:
            shrink.check(self.engine, begun.states[0].batch)
        self.begun = begun
        self._drive(begun.states[-1])
        if self.ended and self._more():
            # All systems have left; some of them return, or the source has more of them now.
            self.ended, self.begun = False, None
            self.aligned = self.turn = int(begun.states[-1].step_count)
            self._exchange_systems(np.ones(len(self.sizes), bool))

    # -- steps -----------------------------------------------------------------------------------

    def run(self) -> Traffic:
        """All steps. If it is interrupted, systems that are finished go to the sink first."""
        driver = self.driver
        if driver is None or self.ended:
            return self.traffic
        try:
            with explain_out_of_memory(self.engine, lambda: driver.with_names().batch):
                return self._run(driver)
        except KeyboardInterrupt as e:
            if not self.exchanging:
                try:
                    driver.drain()
                    self._write_finished()
                except Exception as second:
                    e.add_note(f"while finished systems were written: {second}")
            raise

    def _run(self, driver: Run) -> Traffic:
        traffic = self.traffic
        stepping = 0.0
        while True:
            resident, step, started = len(self.sizes), self.turn, time.perf_counter()
            if self.stream.sampler.shrink and not self._more():
                # No systems wait, so the batch shrinks as systems finish.
                begun, self.begun = self.begun or Begun([driver.state]), None
                last = shrink.ShrinkingRun(driver, begun.states[:-1], begun.stayed, begun.min_active)
                try:
                    last.advance(NO_LIMIT)
                finally:
                    # Also where it is interrupted: finished systems are in their rows again.
                    driver.drain()
                    last.restore()
                self.places += last.places
            else:
                enough = max(1, int(np.ceil(self.share * resident)))
                driver.advance(NO_LIMIT, resident - enough if self._more() else 0)
                if self._more():
                    # The others take a step while those that enter are evaluated.
                    step_now = driver.report.step
                    driver.advance(step_now + (self.aligned - 1 - step_now) % self.unit)
                driver.drain()
                self.places += driver.state.batch.system_capacity * (driver.report.step - step)
            taken, stepped = driver.report.step - step, time.perf_counter()
            traffic.steps += taken
            stepping += stepped - started
            self.exchanging = True
            any_left = self._exchange_systems(self._write_finished())
            self.exchanging = False
            self.turn = driver.report.step
            if not any_left:
                break
            if self.stream.sampler.refill_share is None and taken and traffic.systems > 2 * self.judged:
                self.judged = traffic.systems
                places_now = driver.state.batch.system_capacity
                self.share = best_share(REFILL, np.array(self.recent), places_now)
        traffic.seconds = time.perf_counter() - self.started
        traffic.host_seconds = traffic.seconds - stepping
        traffic.occupancy = self.steps_taken / max(self.places, 1)
        return traffic

    def _more(self) -> bool:
        """Whether any system waits to enter."""
        return self.stream.more or (self.out_of_steps is not None and bool(self.out_of_steps.waiting))

    def _exchange_systems(self, left: Bool[np.ndarray, " systems"]) -> bool:
        """Systems that have left make room for others. False if no system is left."""
        driver, stream = self.driver, self.stream
        assert driver is not None
        stay = np.flatnonzero(~left)
        if not len(stay):
            self.aligned = driver.report.step
        systems = driver.state.batch.system_capacity - len(stay)
        atoms = stream.max_atoms - int(self.sizes[stay].sum())
        if self.out_of_steps is not None and self.out_of_steps.waiting:
            back = self.out_of_steps.next(systems, atoms)
            if back is not None or len(stay):
                self._return(stay, back)
                return True
        entering = stream.take(
            systems, atoms, (stream.sampler.max_pairs or np.inf) - float(self.pairs[stay].sum())
        )
        if entering is None and not len(stay):
            return False
        self._enter(stay, entering)
        # From here on state and sizes agree again. Hooks are called, which may end the run.
        self.exchanging = False
        driver.evaluate_fresh()
        return True

    def _return(self, stay: Int[np.ndarray, " stay"], back: Rows | None) -> None:
        """As many systems that were out of steps as there is room for go on behind those that stay."""
        driver, waiting = self.driver, self.out_of_steps
        assert driver is not None
        assert waiting is not None
        room = capacities(driver.state.batch)
        found: list[Rows] = []
        while back is not None:
            found.append(back)
            systems = room.systems - len(stay) - len(found)
            atoms = self.stream.max_atoms - int(self.sizes[stay].sum() + sum(r.sizes.sum() for r in found))
            back = waiting.next(systems, atoms)
        host = HostBatch.concatenate([rows.host() for rows in found]) if found else None
        self._enter(stay, None if host is None else (host, self.stream.pairs_of(host)))
        state, system, atom = driver.state, len(stay), int(self.sizes[: len(stay)].sum())
        for rows in found:
            state = put(state, rows, system, atom)
            system, atom = system + 1, atom + int(rows.sizes.sum())
        driver.put(state)

    def _write_finished(self) -> Bool[np.ndarray, " systems"]:
        """Give finished systems to the sink; a mask of them."""
        driver = self.driver
        assert driver is not None
        n = len(self.sizes)
        ended = finalize(self.engine, driver.with_names())
        host = ended.to_host()
        # Systems that converged before the first step stay until ON_CONVERGE was called for them.
        announced = ~np.asarray(driver.state.converged_at_start)[:n]
        left = (host.status >= self.engine.exit_status) & announced
        self.traffic.systems += int(left.sum())
        steps = host.steps_taken[left]
        self.steps_taken += float(steps.sum())
        self.recent.extend(steps.tolist())
        if left.any():
            # Before the sink: whoever finds a system there finds its rows and frames.
            record_final(self.engine, driver.state, ended, left)
        if self.out_of_steps is not None:
            self.out_of_steps.write(self.engine, driver.with_names(), left)
        with note_errors(self.sink, f"taking finished systems after step {driver.report.step}"):
            self.sink.write(host, left)
        return left

    def _enter(
        self, stay: Int[np.ndarray, " stay"], entering: tuple[HostBatch, Int[np.ndarray, " entering"]] | None
    ) -> None:
        """Move systems that stay to the first rows, and put systems that enter (with their pairs) behind."""
        driver = self.driver
        assert driver is not None
        state = driver.state
        host, pairs = entering if entering is not None else (None, np.zeros(0, int))
        room, sizes = capacities(state.batch), self.sizes[stay]
        if host is not None:
            sizes = np.concatenate([sizes, host.atoms_per_system])
        plan = plan_rows(self.sizes, stay, room)
        incoming = pack_incoming(state.batch, sizes, len(stay), host, room, self.stream.largest)
        meta = [*driver.meta.filled(len(self.sizes)).of_rows(stay)]
        if host is not None:
            meta += host.meta.filled(len(host))
        incoming, plan = jax.device_put((incoming, plan))
        list_sizes = None if state.neighbors is None else state.neighbors.sizes
        after = _refill_rows(
            driver.device, unsafe_replace(state, records=()), incoming, plan, list_sizes=list_sizes
        )
        driver.meta = Metadata(meta)
        driver.put(unsafe_replace(after, records=state.records))
        self.sizes, self.pairs = sizes, np.concatenate([self.pairs[stay], pairs])
        self.traffic.refills += 1


@functools.partial(jit_loop, static_argnames="list_sizes")
def _refill_rows(
    engine: Partitioned[Engine],
    state: DynamicsState,
    incoming: Batch,
    plan: RowPlan,
    list_sizes: nl.ListSizes | None,
) -> DynamicsState:
    """`move_rows`, compiled."""
    return move_rows(engine.combine(), state, incoming, plan, list_sizes)


__all__ = ["FIRST_SHARE", "REFILL", "RefilledRun", "Traffic"]
