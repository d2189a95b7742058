"""The tasks of a run on a cluster: what is with workers, what comes back, and what becomes of it.

Tasks have no side effects. This process alone writes: what a task gives is taken once, shown to the hooks and
given to the sink, and only then its systems are done. So every system comes out once, whatever workers die or
join.
"""

import queue
import time
import uuid
import warnings
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.cluster.connect import load_dask
from alchemi_jax.dynamics.cluster.events import show
from alchemi_jax.dynamics.cluster.killed import as_failed, split
from alchemi_jax.dynamics.cluster.pace import Pace
from alchemi_jax.dynamics.cluster.pickling import strip
from alchemi_jax.dynamics.cluster.progress import Progress
from alchemi_jax.dynamics.cluster.worker import Done, Room, compute, topic
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.refilled import Traffic
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.lifecycle import note_errors
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.io.sinks import Sink
from alchemi_jax.systems.host import HostBatch


#: Seconds between looks at the workers, and until something is said of there being none.
_LOOK, _ALONE = 0.25, 30.0
#: Who dies at once may not come to say that a task was begun; so often it is given out again.
_TRIES = 3
#: Seconds for which a worker that dies while it is given the engine may still be asked.
_REGISTER = 20.0
#: Seconds in which a result must come from the worker that has it; then it is asked for again.
_FETCH = 60.0


class _Task(NamedTuple):
    """Systems that are computed together, what they cost, and how often they were given out again because
    they were not at work when their workers died."""

    host: HostBatch
    cost: float
    tries: int = 0


class Tasks:
    """The tasks of a run: which are with workers, and what comes back."""

    def __init__(
        self, engine: Engine, stream: Stream, client: Any, work: bytes, sink: Sink, progress: Progress
    ):
        self.engine, self.shown, self.stream = engine, strip(engine), stream
        self.client, self.work, self.sink, self.progress = client, work, sink, progress
        self.name = uuid.uuid4().hex[:12]
        #: By the keys of Dask.
        self.pending: dict[str, tuple[Any, _Task]] = {}
        #: Tasks that are to be given out again, before others.
        self.again: deque[_Task] = deque()
        #: The task that each worker has begun last: keys, by addresses.
        self.begun: dict[str, str] = {}
        self.came: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.pace = Pace(any(flag(h, "judges_convergence") for g in engine.groups for h in g.hooks.traced))
        self.traffic = Traffic()
        self.places = max(stream.places, 1)
        self.needs: nl.Needs | None = None
        sizes = stream.sampler.sizes()
        #: Systems that were not given out; infinite if their number is not known.
        self.left = np.inf if sizes is None else float(len(sizes) - progress.finished)
        self.submitted = 0
        #: In which each worker computed what has come back.
        self.seconds: dict[str, float] = {}
        self.workers, self.looked = 0, -np.inf
        self.alone_since: float | None = None
        #: Whether what has come back is with hooks and sink, and known to be done.
        self.is_whole = True

    def run(self) -> Traffic:
        """All systems."""
        from alchemi_jax.dynamics.cluster.plugin import BringEngine

        began, plugin = time.perf_counter(), BringEngine(self.name, self.work)
        try:
            self._register(plugin)
            self.client.subscribe_topic(topic(self.name), lambda event: self.begun.update([event[1]]))
            while True:
                self._look()
                self._give_out()
                if not self.pending:
                    break
                self._take_back()
                if self.progress.should_stop():
                    raise Interrupted(f"{name_of(self.engine)} was told to stop")
        except BaseException as e:
            # Not in the middle of writing: the next call cuts that off.
            if self.is_whole and isinstance(e, KeyboardInterrupt | ConnectionError):
                self.progress.save(self.stream, now=True)
            raise
        finally:
            self._end(plugin.name)
        self.traffic.seconds = time.perf_counter() - began
        self.traffic.busy = [s / max(self.traffic.seconds, 1e-9) for s in self.seconds.values()]
        return self.traffic

    def _register(self, plugin: Any) -> None:
        from distributed.comm.core import CommClosedError

        self._check_scheduler()
        until = time.monotonic() + _REGISTER
        while True:
            try:
                answers = self.client.register_plugin(plugin).values()
                wrong = [answer for answer in answers if answer.get("status") == "error"]
            except Exception as e:
                self._check_scheduler()
                # A worker that dies just now is asked, too, until the scheduler knows that it is dead.
                if isinstance(e, CommClosedError) and time.monotonic() < until:
                    time.sleep(_LOOK)
                    continue
                wrong = [{"exception_text": f"{name_of(e)}: {e}"}]
            break
        if wrong:
            raise RuntimeError(
                f"a worker cannot read the engine ({wrong[0].get('exception_text', 'see its log')}): are "
                "alchemi_jax and your modules installed there?"
            )

    def _end(self, plugin: str) -> None:
        """Tasks that are still with workers end soon; nothing of theirs is taken."""
        pending, self.pending = [future for future, _ in self.pending.values()], {}
        for undo in (
            lambda: self.client.cancel(pending, force=True),
            lambda: self.client.unsubscribe_topic(topic(self.name)),
            lambda: self.client.unregister_worker_plugin(plugin),
        ):
            try:
                undo()
            except Exception:
                # The cluster is gone, and so is what would be undone.
                return

    # -- giving out ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Count the workers now and then."""
        now = time.monotonic()
        if now - self.looked < 4 * _LOOK:
            return
        self.looked = now
        self._check_scheduler()
        try:
            self.workers = len(self.client.nthreads())
        except Exception as e:
            raise self._gone() from e
        if self.workers:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = now
        elif now - self.alone_since > _ALONE:
            self.alone_since = np.inf
            warnings.warn(
                f"no worker has joined {self._address} for {_ALONE:.0f} s: the run waits.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _give_out(self) -> None:
        """As many tasks as there are workers: Dask accuses all tasks that a worker has when it dies."""
        while len(self.pending) < max(self.workers, 1):
            task = self.again.popleft() if self.again else self._next()
            if task is None:
                return
            self._submit(task)

    def _next(self) -> _Task | None:
        stream, places = self.stream, self.places
        batches = self.pace.batches(self._cost_of_batch(), self.left / places, self.workers)
        pairs = stream.sampler.max_pairs
        taken = stream.take(
            batches * places, batches * stream.max_atoms, float("inf") if pairs is None else batches * pairs
        )
        if taken is None:
            return None
        host, needed = taken
        self._widen()
        self.left -= len(host)
        return _Task(host, float(len(host.batch_idx) + needed.sum()))

    def _cost_of_batch(self) -> float:
        """About what a full batch costs: atoms and pairs of the systems that wait."""
        host, pairs = self.stream.waiting, self.stream.pairs
        if host is None or not len(host):
            return 1.0
        return self.places * float(len(host.batch_idx) + pairs.sum()) / len(host)

    def _widen(self) -> None:
        """The lists of all workers have room for any systems that were read so far."""
        needs = self.stream.needs
        if needs is not None:
            self.needs = needs.largest(self.places, self.needs)

    def _submit(self, task: _Task) -> None:
        sampler = self.stream.sampler
        room = Room(
            self.places,
            self.stream.max_atoms,
            sampler.max_pairs,
            self.stream.largest,
            self.needs,
            sampler.policy,
            sampler.refill_share,
            sampler.shrink,
        )
        self.submitted += 1
        key = f"alchemi-jax-{self.name}-{self.submitted}"
        with warnings.catch_warnings():
            # Systems are sent with their task, so that nothing is lost with a worker.
            warnings.filterwarnings("ignore", "Sending large graph")
            future = self.client.submit(compute, self.name, task.host, room, key=key, pure=False)
        self.pending[key] = future, task
        future.add_done_callback(lambda _: self.came.put(key))

    # -- taking back -----------------------------------------------------------------------------

    def _take_back(self) -> None:
        """What has come back, after waiting for it a moment."""
        try:
            key = self.came.get(timeout=_LOOK)
        except queue.Empty:
            self.progress.save(self.stream)
            return
        if key not in self.pending:
            return
        future, task = self.pending[key]
        distributed = load_dask()
        try:
            if future.status == "error":
                error = future.exception(timeout=_FETCH)
                if not isinstance(error, distributed.KilledWorker):
                    error.add_note(f"raised on a worker, for {_names(task.host)}")
                    raise error.with_traceback(future.traceback(timeout=_FETCH))
                del self.pending[key]
                self._killed(task, self.begun.get(error.last_worker.address) == key)
            elif future.status == "cancelled":
                del self.pending[key]
                self._check_scheduler()
                self.again.append(task)
            else:
                done = future.result(timeout=_FETCH)
                del self.pending[key]
                self._take(task, done)
        except distributed.TimeoutError:
            # The worker that had it has died and another one computes it again, or the way is slow.
            future.add_done_callback(lambda _: self.came.put(key))
        self.progress.save(self.stream)

    def _take(self, task: _Task, done: Done) -> None:
        """Hooks see what belongs to systems that are finished, then the sink gets them."""
        self.progress.check_new(done.host.system_id, task.host.system_id)
        self.is_whole = False
        for event in done.events:
            show(self.shown, event)
        self._write(done.host)
        self.traffic.steps += done.steps
        self.seconds[done.who] = self.seconds.get(done.who, 0.0) + done.seconds
        self.pace.note(task.cost, done.seconds)
        for text in done.warnings:
            warnings.warn(text, RuntimeWarning, stacklevel=4)

    def _write(self, host: HostBatch) -> None:
        self.is_whole = False
        with note_errors(self.sink, "taking finished systems"):
            self.sink.write(host)
        self.progress.add(host.system_id)
        self.is_whole = True
        self.traffic.systems += len(host)

    def _killed(self, task: _Task, was_at_work: bool) -> None:
        """The workers that had a task have died; whether it was at work on the last one, or waited there."""
        n = len(task.host)
        if n > 1:
            self.again += [_Task(part, task.cost * len(part) / n) for part in split(task.host)]
            return
        if not was_at_work and task.tries < _TRIES:
            self.again.append(task._replace(tries=task.tries + 1))
            return
        failed = as_failed(self.engine, task.host)
        self._write(failed)
        warnings.warn(
            f"{failed.name_of(0)} failed before the first step: {failed.outcome_text(0)}. It stays as it was "
            "given.",
            RuntimeWarning,
            stacklevel=4,
        )

    # -- the scheduler ---------------------------------------------------------------------------

    @property
    def _address(self) -> str:
        return str(getattr(self.client.scheduler, "address", "the cluster"))

    def _check_scheduler(self) -> None:
        if self.client.status != "running":
            raise self._gone()

    def _gone(self) -> ConnectionError:
        return ConnectionError(
            f"the scheduler {self._address} is gone; {self.progress.finished} systems are finished"
            f"{self._kept}."
        )

    @property
    def _kept(self) -> str:
        if self.progress.saver is None:
            return ", and without resume= another call begins again"
        return " and saved: the same call with another client goes on"


def _names(host: HostBatch) -> str:
    names = [host.name_of(row) for row in range(min(len(host), 3))]
    return ", ".join(names) + (f" and {len(host) - 3} more systems" if len(host) > 3 else "")


__all__ = ["Tasks"]
