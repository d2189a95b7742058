"""In-flight refilling: any number of systems pass through a batch of fixed shapes.

The driver runs until enough systems are finished. These go to the sink, the others move to the first rows,
the next systems of the stream take the room, and the driver continues. A system that enters is fresh: it
begins as in `init`, and the next pass of the loop evaluates it. The other systems and their neighbor lists
move as they are, so that their steps do not change, bit for bit.
"""

import dataclasses
import functools
import os
import time
from collections import deque
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PRNGKeyArray, Shaped

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import driver, shrink
from alchemi_jax.dynamics.check import NO_LIMIT, check_systems, with_budget
from alchemi_jax.dynamics.driver import Run, carry_state
from alchemi_jax.dynamics.final import record_final
from alchemi_jax.dynamics.finish import finalize
from alchemi_jax.dynamics.hooks.snapshot import check_sink
from alchemi_jax.dynamics.out_of_memory import explain_out_of_memory
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import (
    RowPlan,
    capacities,
    check_rows_may_move,
    move_rows,
    pack_incoming,
    plan_rows,
)
from alchemi_jax.dynamics.sampler import Sampler, Stream
from alchemi_jax.dynamics.segments import jit_loop
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.io.sinks import HostMemory, Sink
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.metadata import Metadata


#: Share of finished systems at which a run is refilled for the first time.
FIRST_SHARE = 0.4
#: Bounds of the share later on, and its value if systems end together.
LEAST, MOST, WAVE = 0.05, 0.7, 0.9


@dataclasses.dataclass
class Traffic:
    """What a refilled run did.

    Attributes:
        systems: number of systems that finished; `refills`, `steps`: of the batch.
        occupancy: mean share of places with an unfinished system, over all steps.
        seconds: total time; `host_seconds`: the part of it in which no compiled step was running.
    """

    systems: int = 0
    refills: int = 0
    steps: int = 0
    occupancy: float = 0.0
    seconds: float = 0.0
    host_seconds: float = 0.0


def run(
    engine: Engine,
    sampler: Sampler,
    sink: Sink | None,
    n_steps: int | None,
    key: PRNGKeyArray | None,
    resume: str | os.PathLike | None = None,
) -> Any:
    """See `AbstractDynamics.run`."""
    engine = with_budget(engine, n_steps)
    check_rows_may_move(engine, "with a sampler systems come and go")
    own, refilled = HostMemory(), None
    if sink is not None:
        check_sink(f"{name_of(engine)}.run", sink)
    out = own if sink is None else sink
    stream = Stream(sampler, engine.model, lambda batch: check_systems(engine, batch))
    try:
        with engine:
            _open_sink(out)
            try:
                refilled = _RefilledRun(engine, stream, out, key)
                sampler.traffic = refilled.run()
            except BaseException as e:
                out.close()
                if refilled is not None and refilled.driver is not None:
                    carry_state(e, refilled.driver.with_names())
                if sink is None:
                    e.finished = own.read() if len(own) else None  # pyright: ignore
                raise
            out.close()
    finally:
        stream.close()
    if sink is not None:
        return sink
    if not len(own):
        raise ValueError(f"no system of {sampler!r} fits: {len(sampler.skipped)} were left out.")
    host = own.read()
    return Batch.from_host(host.take(np.argsort(host.system_id, kind="stable")))


def _open_sink(sink: Sink) -> None:
    try:
        sink.open()
    except Exception as e:
        e.add_note(f"raised in sink {sink!r} before the first step")
        raise


class _RefilledRun:
    """A refilled run: the run of the driver, the stream of systems, and the sizes of those in the batch."""

    def __init__(self, engine: Engine, stream: Stream, sink: Sink, key: PRNGKeyArray | None):
        self.engine, self.stream, self.sink = engine, stream, sink
        self.traffic = Traffic()
        self.steps_taken = 0.0
        self.exchanging = False
        #: Numbers of steps of the systems that left last.
        self.recent: deque[int] = deque(maxlen=10 * stream.sampler.max_systems)
        self.started = time.perf_counter()
        most = stream.sampler.max_systems
        first = stream.take(most, stream.max_atoms, stream.sampler.max_pairs or np.inf)
        self.driver: Run | None = None
        if first is None:
            return
        host, self.pairs = first
        places = most if stream.more else len(host)
        batch = Batch.from_host(host, stream.max_atoms, places, largest=stream.largest)
        needs = stream.needs
        if needs is not None and len(needs.images) < places:
            needs = None
        self.sizes = host.atoms_per_system
        if stream.sampler.shrink:
            shrink.check(engine, batch)
        state = driver.init(engine, batch, key, None, waiting=needs)
        self.driver = Run(engine, state)

    def run(self) -> Traffic:
        """All steps. If it is interrupted, systems that are finished go to the sink first."""
        if self.driver is None:
            return self.traffic
        try:
            with explain_out_of_memory(self.engine, lambda: self.driver.with_names().batch):
                return self._run(self.driver)
        except KeyboardInterrupt as e:
            if not self.exchanging:
                try:
                    self.driver.drain()
                    self._write_finished()
                except Exception as second:
                    e.add_note(f"while finished systems were written: {second}")
            raise

    def _run(self, driver: Run) -> Traffic:
        traffic = self.traffic
        share = self.stream.sampler.refill_share or FIRST_SHARE
        stepping, judged, places = 0.0, 0, 0
        while True:
            resident, step, started = len(self.sizes), driver.report.step, time.perf_counter()
            if self.stream.sampler.shrink and not self.stream.more:
                # No systems wait, so the batch shrinks as systems finish.
                last = shrink.ShrinkingRun(driver)
                try:
                    last.advance(NO_LIMIT)
                finally:
                    # Also where it is interrupted: finished systems are in their rows again.
                    driver.drain()
                    last.restore()
                places += last.places
            else:
                min_active = resident - max(1, int(np.ceil(share * resident))) if self.stream.more else 0
                driver.advance(NO_LIMIT, min_active)
                driver.drain()
                places += driver.state.batch.system_capacity * (driver.report.step - step)
            taken, stepped = driver.report.step - step, time.perf_counter()
            traffic.steps += taken
            stepping += stepped - started
            self.exchanging = True
            any_left = self._exchange_systems()
            self.exchanging = False
            refilling = time.perf_counter() - stepped
            if not any_left:
                break
            if self.stream.sampler.refill_share is None and taken and traffic.systems > 2 * judged:
                judged = traffic.systems
                # Both times are of this turn: earlier turns include compilation.
                refill = refilling / ((stepped - started) / taken)
                share = best_share(refill, np.array(self.recent), driver.state.batch.system_capacity)
        traffic.seconds = time.perf_counter() - self.started
        traffic.host_seconds = traffic.seconds - stepping
        traffic.occupancy = self.steps_taken / max(places, 1)
        return traffic

    def _exchange_systems(self) -> bool:
        """Finished systems leave, others enter. False if no system is left."""
        driver, stream = self.driver, self.stream
        assert driver is not None
        left = self._write_finished()
        stay = np.flatnonzero(~left)
        entering = stream.take(
            driver.state.batch.system_capacity - len(stay),
            stream.max_atoms - int(self.sizes[stay].sum()),
            (stream.sampler.max_pairs or np.inf) - float(self.pairs[stay].sum()),
        )
        if entering is None and not len(stay):
            return False
        self._enter(stay, entering)
        return True

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
        driver.evaluate_fresh()
        self.sizes, self.pairs = sizes, np.concatenate([self.pairs[stay], pairs])
        self.traffic.refills += 1


def best_share(refill: float, steps: Shaped[np.ndarray, " systems"], places: int) -> float:
    """The share of systems that should be finished before others enter, for the least cost per system.

    Args:
        refill: cost of a refill, in steps of the batch.
        steps: number of steps that each system took.
        places: systems in flight.

    There are two candidates. If systems finish at all times, places become idle one after another. If a
    refill happens when a share x is idle, 1 - x/2 of the places are busy on average: a system costs steps /
    (1 - x/2) of the time of a place, and refill / x for refills. The sum is least at x = q / (1 + q/2) with
    q² = 2 refill / steps. But systems that take nearly the same number of steps, and began together, end
    together: then it is best to wait for nearly all of them. Both are tried on a sample of past systems.
    """
    q = float(np.sqrt(2 * refill / max(steps.mean(), 1e-12)))
    steady = min(max(q / (1 + q / 2), LEAST), MOST)
    sample = np.random.default_rng(0).choice(steps, 5 * places)
    return min((steady, WAVE), key=lambda share: _cost(share, refill, sample, places))


def _cost(share: float, refill: float, steps: Shaped[np.ndarray, " sample"], places: int) -> float:
    """Cost per system in steps of the batch, refills included, for a sample of numbers of steps."""
    left, taken = np.array(steps[:places], float), places
    enough, spent, refills = int(np.ceil(share * places)), 0.0, 0
    while True:
        first = np.partition(left, enough - 1)[enough - 1]
        spent += first
        left -= first
        idle = np.flatnonzero(left <= 0)
        if taken + len(idle) > len(steps):
            return (spent + refill * refills) / (taken - places + len(idle))
        left[idle] = steps[taken : taken + len(idle)]
        taken, refills = taken + len(idle), refills + 1


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


__all__ = ["FIRST_SHARE", "LEAST", "MOST", "WAVE", "Traffic", "best_share", "run"]
