"""`engine.run(sampler=...)`: the sink, the stream of systems, and what a checkpoint has of both."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics.check import check_systems, with_budget
from alchemi_jax.dynamics.devices.devices import as_devices, as_many_as_pay, default_device
from alchemi_jax.dynamics.devices.stream import StreamOverDevices, check, parts_of
from alchemi_jax.dynamics.driver import carry_state
from alchemi_jax.dynamics.hooks.snapshot import check_sink
from alchemi_jax.dynamics.processes import share_stream
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.refilled import RefilledRun
from alchemi_jax.dynamics.rows import check_rows_may_move
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.saver import Saved, Saver, make_saver
from alchemi_jax.dynamics.stream import Stream
from alchemi_jax.errors import name_of
from alchemi_jax.io.sinks import HostMemory, Sink, ZarrData
from alchemi_jax.parameters import as_key
from alchemi_jax.shared import world
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


#: The store of finished systems in a folder of checkpoints, if the run has no sink.
FINISHED = "finished.zarr"


def run(
    engine: Engine,
    sampler: Sampler,
    sink: Sink | None,
    n_steps: int | None,
    key: PRNGKeyArray | None,
    resume: str | os.PathLike | None = None,
    asked: Any = None,
) -> Any:
    """See `AbstractDynamics.run`. `asked`: which devices; by default those of the sampler."""
    engine = with_budget(engine, n_steps)
    check_rows_may_move(engine, "with a sampler systems come and go")
    asked = sampler.devices if asked is None else asked
    sizes = sampler.sizes()
    atoms = None if sizes is None else int(sizes.sum()) // world().size
    devices = as_many_as_pay(asked, as_devices(asked, "Sampler"), engine.model, atoms)
    if devices is not None:
        check(engine)
    if sink is not None:
        check_sink(f"{name_of(engine)}.run", sink)

    def work() -> HostBatch | None:
        return _run_share(engine, sampler, sink, key, resume, devices)

    host, total = share_stream(sampler, engine, work)
    if sink is not None:
        return sink
    if host is None:
        if not total:
            raise ValueError(f"the source of {sampler!r} holds no systems.")
        raise ValueError(f"no system of {sampler!r} fits: {len(sampler.skipped)} were left out.")
    # Of a system that got more steps after it had left, the last state counts.
    last = {system: row for row, system in enumerate(host.system_id.tolist())}
    return Batch.from_host(host.take(np.array([last[system] for system in sorted(last)])))


def _run_share(
    engine: Engine,
    sampler: Sampler,
    sink: Sink | None,
    key: PRNGKeyArray | None,
    resume: str | os.PathLike | None,
    devices: tuple[Any, ...] | None,
) -> HostBatch | None:
    """The systems of this process in the order in which they finished; None without any, or with a sink."""
    saver = make_saver(engine, resume, "stream", sink)
    if saver is None:
        out = HostMemory() if sink is None else sink
        return _run(engine, sampler, out, sink is None, key, None, None, devices)
    if sink is None:
        # What is finished survives, too. Without `resume` the run begins again, and so does the store.
        saver.sink = ZarrData(saver.store.folder / FINISHED, "w" if resume is None else "a")
    with saver.opened(
        resume is not None, look=lambda found: saver.restore(found, None, as_key(key))
    ) as saved:
        assert saver.sink is not None
        return _run(engine, sampler, saver.sink, sink is None, key, saver, saved, devices)


def _run(
    engine: Engine,
    sampler: Sampler,
    out: Sink,
    is_own: bool,
    key: PRNGKeyArray | None,
    saver: Saver | None,
    saved: Saved | None,
    devices: tuple[Any, ...] | None,
) -> HostBatch | None:
    """`is_own`: whether the sink is ours, and the systems are returned."""
    refilled: Any
    if devices is None and saved is not None and len(parts_of(saved)) > 1:
        # It was begun on several devices, and goes on with as many batches.
        devices = (default_device(),)
    stream = _open_stream(engine, sampler, saved, saver is not None, 0 if devices is None else len(devices))
    try:
        with engine, opened_sink(out, is_own):
            if devices is None:
                one = None if saved is None else parts_of(saved)[0]
                refilled = RefilledRun(engine, stream, out, key, saver, one)
            else:
                refilled = StreamOverDevices(engine, stream, out, key, saver, saved, devices)
            try:
                sampler.traffic = refilled.run()
                refilled.save_end()
            except BaseException as e:
                carry_state(e, refilled.reached)
                raise
    finally:
        stream.close()
    return out.read() if is_own and len(out) else None


def _open_stream(engine: Engine, sampler: Sampler, saved: Saved | None, marks: bool, devices: int) -> Stream:
    def check_batch(batch: Batch) -> None:
        check_systems(engine, batch)

    if saved is None:
        return Stream(sampler, engine.model, check_batch, marks=marks, shares=max(devices, 1))
    known = HostBatch.concatenate([part.states[0].batch.to_host() for part in parts_of(saved)])
    shares = max(devices, len(parts_of(saved)))
    return Stream(sampler, engine.model, check_batch, saved.rest["stream"], known, marks, shares)


@contextlib.contextmanager
def opened_sink(sink: Sink, is_own: bool) -> Iterator[None]:
    """A context in which a sink is open; errors of opening it say when they came.

    Args:
        is_own: whether the sink is the run's: an error then carries the systems in it, as `finished`.
    """
    try:
        sink.open()
    except Exception as e:
        e.add_note(f"raised in sink {sink!r} before the first step")
        raise
    try:
        yield
    except BaseException as e:
        sink.close()
        if is_own:
            e.finished = sink.read() if len(sink) else None  # pyright: ignore
        raise
    sink.close()


__all__ = ["FINISHED", "opened_sink", "run"]
