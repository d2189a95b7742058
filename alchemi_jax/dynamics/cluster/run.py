"""A sampler's systems through the workers of a Dask cluster, to one sink."""

import os
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics.check import check_systems
from alchemi_jax.dynamics.cluster.connect import check_client
from alchemi_jax.dynamics.cluster.pickling import pack, strip
from alchemi_jax.dynamics.cluster.progress import Progress, look
from alchemi_jax.dynamics.cluster.tasks import Tasks
from alchemi_jax.dynamics.devices.check import Division, check_follows, check_hooks, check_memories
from alchemi_jax.dynamics.hooks.snapshot import check_sink
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.refill import FINISHED, opened_sink
from alchemi_jax.dynamics.rows import check_rows_may_move
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.saver import make_saver
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.errors import description, public_call
from alchemi_jax.io.sinks import HostMemory, Sink, ZarrData
from alchemi_jax.parameters import as_key
from alchemi_jax.systems.batch import Batch


_CLUSTER = Division("on a cluster each worker has some of the systems", "leave client out")


def run_on_cluster(
    engine: Engine,
    sampler: Sampler,
    client: Any,
    *,
    sink: Sink | None = None,
    key: PRNGKeyArray | None = None,
    resume: str | os.PathLike | None = None,
) -> Any:
    """Run an engine or pipeline on all systems of a sampler, over the workers of a Dask cluster.

    Systems go to the workers in tasks. Each worker reads the engine once and keeps its compiled programs; its
    batch has room for `max_systems` of the sampler. If a worker dies, another one computes its task, from the
    start of its systems. Workers may come and go at any time; without any the run waits. A system that is
    alone in a task and kills more workers than the scheduler's `allowed-failures` fails and is named; the
    others continue.

    Sinks and the output of hooks are written only in this process, when a task has come back: each system,
    row and frame once. Host hooks are called then, with the systems of one task at a time.

    Args:
        engine: its hooks must allow pickling; their sinks and writers need not.
        sampler: source of the systems; without `devices`.
        client: a `distributed.Client`, see `connect`.
        sink: stores finished systems; by default they are kept in memory, or in the folder `resume`.
        key: as for `AbstractDynamics.run`.
        resume: a folder, written every 2 s. The run continues after the systems that are finished there, or
            starts if there are none. Sinks and logs first return to that point. Systems that were in flight
            start again.

    Returns:
        All systems in the order of the source; or, with a sink, the sink, which has them in the order in
        which they came back.

    Raises:
        ImportError: without Dask. TypeError, ValueError: naming what cannot be run on a cluster, before
            anything is computed. ConnectionError: if the scheduler is gone; what is finished is saved.
    """
    with public_call():
        client = check_client(client)
        if not isinstance(sampler, Sampler):
            raise TypeError(f"run_on_cluster takes a Sampler, not {description(sampler)}.")
        _check(engine, sampler)
        if sink is not None:
            check_sink("run_on_cluster", sink)
        key, saver = as_key(key), make_saver(engine, resume, "cluster", sink)
        work = pack(strip(engine), key)
        if saver is None:
            out = HostMemory() if sink is None else sink
            return _run(engine, sampler, client, work, out, sink is None, Progress(engine, key, None, None))
        if saver.hook.every is not None:
            raise ValueError(f"{saver.hook!r} counts steps, which workers take: give it every_seconds alone.")
        if sink is None:
            saver.sink = ZarrData(saver.store.folder / FINISHED, "w" if resume is None else "a")
        with saver.opened(resume is not None, look=lambda found: look(engine, key, found)) as saved:
            progress, out = Progress(engine, key, saver, saved), saver.sink
            assert out is not None
            return _run(engine, sampler, client, work, out, sink is None, progress)


def _check(engine: Engine, sampler: Sampler) -> None:
    if sampler.devices is not None:
        raise ValueError("a Sampler with devices= is for this machine: on a cluster leave devices out.")
    check_rows_may_move(engine, "with a sampler systems come and go")
    check_hooks(engine, _CLUSTER)
    check_follows(engine, "On a cluster it sees the systems of one task at a time", "client")


def _run(
    engine: Engine, sampler: Sampler, client: Any, work: bytes, out: Sink, is_own: bool, progress: Progress
) -> Any:
    def check_batch(batch: Batch) -> None:
        check_systems(engine, batch)

    workers = max(len(client.nthreads()), 1)
    marks = progress.saver is not None
    stream = Stream(sampler, engine.model, check_batch, progress.stream, None, marks, workers)
    try:
        if stream.waiting is not None:
            first = stream.waiting.take(np.arange(min(stream.places, len(stream.waiting))))
            check_memories(engine, Batch.from_host(first), _CLUSTER)
        with engine, opened_sink(out, is_own):
            sampler.traffic = Tasks(engine, stream, client, work, out, progress).run()
            progress.save(stream, ended=True)
    finally:
        stream.close()
    if not is_own:
        return out
    if not len(out):
        raise ValueError(f"no system of {sampler!r} fits: {len(sampler.skipped)} were left out.")
    host = out.read()
    return Batch.from_host(host.take(np.argsort(host.system_id, kind="stable")))


__all__ = ["run_on_cluster"]
