"""Runs that several processes share: each runs its systems with an unchanged driver, and all get all results.

Processes exchange a mark of what they were given when a run begins, and the results when it ends. In between
no step waits for another process.
"""

import zlib
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.devices.check import Division, check_memories
from alchemi_jax.dynamics.devices.deal import costs, deal, room_for
from alchemi_jax.dynamics.devices.gather import named_systems, part_of_batch, whole_batch
from alchemi_jax.dynamics.devices.proxies import with_rows
from alchemi_jax.dynamics.devices.records import row_levels
from alchemi_jax.dynamics.finish import with_reason_texts
from alchemi_jax.dynamics.init import prepare_batch
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import check_relations
from alchemi_jax.dynamics.sameness import marks_of
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks.protocol import runs_on
from alchemi_jax.shared import gather, together, world
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace


_PROCESSES = Division("with several processes each has some of the systems", "run it in one process")


def share_batch(engine: Engine, batch: Batch, work: Callable[[Engine, Batch, str | None], Batch]) -> Batch:
    """The batch that all processes make of one, each of its share.

    Args:
        engine, batch: of the whole run, the same in all processes.
        work: called as work(engine, batch, builder) for the share of this process; `builder` makes its
            neighbor lists, None: as it does by itself.

    Raises:
        ValueError: if processes were given different batches, or a hook relates systems to one another.
    """
    rank, size = world()
    if size == 1:
        return work(engine, batch, None)
    with together():
        check_hooks(engine, None)
        systems = named_systems(batch)
        check_same("batch", list(marks_of(systems)))
        whole = unsafe_replace(prepare_batch(engine, batch), meta=batch.meta)
        check_hooks(engine, whole)
        needs, builder, required = None, None, engine.model.requirements
        if required.cutoff is not None:
            needs = nl.list_needs(whole, required.cutoff, required.skin, required)
            nl.check_needs(whole, needs, required.cutoff, required.skin)
            # As in one batch of all: who makes the lists must not depend on the number of processes.
            builder = nl.guess_sizes(
                whole, required.cutoff, required.skin, waiting=needs, requirements=required
            ).builder
        parts = deal(costs(engine, whole, needs), size)
        mine = None
        if rank < len(parts):
            rows, room = parts[rank], room_for(whole, parts, spare=False)
            part = part_of_batch(systems, rows, room)
            mine = work(with_rows(engine, rows, room.systems), part, builder).to_host()
        else:
            write_nothing(engine)
        found: Any = [host for host in gather(mine) if host is not None]
        return with_reason_texts(engine, whole_batch(whole, parts, found))


def share_stream(
    sampler: Any, engine: Engine, work: Callable[[], HostBatch | None]
) -> tuple[HostBatch | None, int]:
    """The systems of all processes, each of which has run its share of a stream, by their ids.

    Args:
        sampler: whose `skipped` are then those of all processes.
        work: runs the share of this process; returns its systems, or None if they are in a sink.

    Returns:
        The systems, None without any; and how many there were in all processes together, or were left out.
    """
    size = world().size
    with together():
        if size > 1:
            check_hooks(engine, None)
            check_same("source of the sampler", _mark_of_source(sampler))
        mine = work()
        if size == 1:
            return mine, sampler.traffic.systems
        answers = gather((mine, sampler.skipped, sampler.traffic.systems))
    sampler.skipped = sorted(entry for _, skipped, _ in answers for entry in skipped)
    found = [host for host, _, _ in answers if host is not None]
    total = sum(n for _, _, n in answers) + len(sampler.skipped)
    return (HostBatch.concatenate(found) if found else None), total


def is_own(system_ids: Int[np.ndarray, " systems"]) -> Bool[np.ndarray, " systems"]:
    """[systems] Which systems of a stream this process runs.

    It follows from the ids alone, so that a system never changes its process when a run goes on with a longer
    source or other bounds. The processes take turns there and back, 0, 1, 2, 2, 1, 0, ..., which is fair also
    to a source that is sorted by size.
    """
    rank, size = world()
    turn, place = np.divmod(np.asarray(system_ids), size)
    return np.where(turn % 2 == 0, place, size - 1 - place) == rank


def write_nothing(engine: Engine) -> None:
    """Open and close the hooks of an engine, which leaves its files empty: a part that is missing is an error
    to those who read."""
    with engine:
        pass


def check_same(what: str, mark: Any) -> None:
    """Check that all processes were given the same.

    Raises:
        ValueError: naming the first process that has another.
    """
    marks = gather(mark)
    odd = [rank for rank, other in enumerate(marks) if other != marks[0]]
    if odd:
        raise ValueError(
            f"process {odd[0]} of {len(marks)} was given another {what} than process 0: all processes take "
            "all systems, and each runs its share of them."
        )


def _mark_of_source(sampler: Any) -> Any:
    source = sampler.source
    if isinstance(source, Batch | HostBatch):
        return zlib.crc32(marks_of(source.to_host()).tobytes())
    if isinstance(source, str | Path):
        return str(source)
    return type(source).__name__, len(source) if isinstance(source, Sized) else None


def check_one_process(what: str) -> None:
    """Check that there is one process, for what several cannot share.

    Raises:
        ValueError: naming it.
    """
    if world().size > 1:
        raise ValueError(
            f"{what} runs in one process, and there are {world().size}: use its devices=, or start one."
        )


def check_hooks(engine: Engine, batch: Batch | None) -> None:
    """Check that no hook relates systems to one another: each process has some of them.

    Args:
        batch: all systems; None for a stream.

    Raises:
        ValueError: naming the hook.
    """
    check_relations(engine, *_PROCESSES)
    if batch is None:
        return
    for group in engine.groups:
        for entry in group.hooks.recording:
            if sum(runs_on(entry.hook, stage) for stage in DynamicsStage) == 1:
                row_levels(engine, group, entry.hook, batch, _PROCESSES)
    check_memories(engine, batch, _PROCESSES)


__all__ = [
    "check_hooks",
    "check_one_process",
    "check_same",
    "is_own",
    "share_batch",
    "share_stream",
    "write_nothing",
]
