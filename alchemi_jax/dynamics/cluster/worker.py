"""On a worker: one engine for each run, which keeps what is compiled, and the systems of tasks through it."""

import os
import platform
import threading
import time
import warnings
from typing import Any, NamedTuple

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.cluster.events import Event, Recorder
from alchemi_jax.dynamics.cluster.pickling import unpack, unpack_settings
from alchemi_jax.dynamics.devices.proxies import engine_of_part
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.refilled import First, RefilledRun
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.errors import public_call
from alchemi_jax.io.sinks import HostMemory
from alchemi_jax.systems.host import HostBatch


#: Seconds in which the engine of a run must come to a worker.
_COMES = 60.0
#: Seconds after which the scheduler has heard what a worker says.
_HEARD = 0.1


class Room(NamedTuple):
    """Capacities of the batch of every worker; they never become smaller, so that little is compiled.

    Attributes:
        systems, atoms, pairs, largest: see `Sampler` and `Batch`. needs: of the lists of any systems.
        policy, refill_share, shrink: see `Sampler`.
    """

    systems: int
    atoms: int
    pairs: int | None
    largest: int
    needs: nl.Needs | None
    policy: str
    refill_share: float | None
    shrink: bool


class Done(NamedTuple):
    """What a task gives.

    Attributes:
        host: the systems as they have ended. events: what hooks saw. warnings: texts, in order.
        seconds: it took. steps: of the batch. who: computed it, host and process.
    """

    host: HostBatch
    events: list[Event]
    warnings: list[str]
    seconds: float
    steps: int
    who: str


class _Engine:
    """The engine of a run on this worker, read when the first task comes."""

    def __init__(self, work: bytes):
        self.settings, self._rest = unpack_settings(work)
        self.stops = False
        self._read: tuple[Any, Any, Recorder] | None = None

    def get(self) -> tuple[Any, Any, Recorder]:
        """Engine, key, and what keeps the calls of its hooks."""
        if self._read is None:
            given, key = unpack(self._rest)
            recorder = Recorder(given)
            self._read = engine_of_part(given, recorder.wrap, None), key, recorder
            self._rest = b""
        return self._read


#: By the name of the run. Programs that were compiled for an engine belong to this process, as it does.
_engines: dict[str, _Engine] = {}
#: One task at a time: several in a process would share cores and memory.
_turn = threading.Lock()


def bring(run: str, work: bytes) -> None:
    """The engine of a run has come."""
    _engines[run] = _Engine(work)


def drop(run: str) -> None:
    """The run has ended: what still runs with its engine ends between two segments."""
    engine = _engines.pop(run, None)
    if engine is not None:
        engine.stops = True


class _Asked:
    """What the driver asks between two segments, see `saver.Asked`: whether the run was ended. Nothing is
    saved."""

    out_of_steps = None

    def __init__(self, engine: _Engine):
        self.engine = engine

    def should_stop(self) -> bool:
        if self.engine.stops:
            raise Interrupted("the run was ended where it was called")
        return False

    def is_due(self, step: int) -> bool:
        return False

    def next_step(self, step: int) -> int | None:
        return None

    def save(self, states: list[DynamicsState], rest: dict[str, Any], ended: bool = False) -> None:
        pass


def compute(run: str, host: HostBatch, room: Room) -> Done | None:
    """The systems of a task, from their beginning to their end; None if the run was ended.

    Raises:
        RuntimeError: if the engine of the run has not come.
        ImportError: if this worker has other versions.
    """
    until = time.monotonic() + _COMES
    while (engine := _engines.get(run)) is None:
        if time.monotonic() > until:
            raise RuntimeError(f"the engine of the run {run} has not come to this worker")
        time.sleep(0.05)
    engine.settings.check()
    with _turn, engine.settings.active(), public_call():
        began = time.perf_counter()
        _say_begun(run)
        if len(host) == 1:
            # So that it is known, and that the task before has come back, even if this one ends the process.
            time.sleep(_HEARD)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = _compute(engine, host, room)
        if found is None:
            return None
        ended, events, steps = found
        texts = [str(w.message) for w in told if issubclass(w.category, RuntimeWarning)]
        return Done(ended, events, texts, time.perf_counter() - began, steps, _who())


def topic(run: str) -> str:
    """Under which workers say that they have begun a task."""
    return f"alchemi-jax {run}"


def _say_begun(run: str) -> None:
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(topic(run), [str(worker.address), str(worker.get_current_task())])


def _who() -> str:
    return f"{platform.node()} {os.getpid()}"


def _compute(engine: _Engine, host: HostBatch, room: Room) -> tuple[HostBatch, list[Event], int] | None:
    dynamics, key, recorder = engine.get()
    recorder.events = []
    sampler = Sampler(
        host,
        max_systems=room.systems,
        max_atoms=room.atoms,
        max_pairs=room.pairs,
        policy=room.policy,
        window=max(len(host), 1),
        refill_share=room.refill_share,
        shrink=room.shrink,
    )
    # Systems were checked where the run was called.
    stream, out = Stream(sampler, dynamics.model, lambda batch: None), HostMemory()
    stream.largest = max(stream.largest, room.largest)
    try:
        taken = stream.take(room.systems, room.atoms, room.pairs or float("inf"))
        assert taken is not None
        first = First(*taken, room.systems, room.needs)
        refilled = RefilledRun(dynamics, stream, out, key, _Asked(engine), None, first)
        with dynamics:
            refilled.run()
    except Interrupted:
        return None
    finally:
        stream.close()
    events, recorder.events = recorder.events, []
    return out.read(), events, refilled.traffic.steps


__all__ = ["Done", "Room", "bring", "compute", "drop", "topic"]
