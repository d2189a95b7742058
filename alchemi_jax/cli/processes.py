"""One command in several processes: the first one holds the folder of results, speaks, and writes what is
made of all; each runs its share of the structures and writes its parts of stores and logs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alchemi_jax.cli.begin import Begun
from alchemi_jax.cli.inputs import structures_of
from alchemi_jax.cli.outcome import OK, UsageError
from alchemi_jax.cli.record import Record
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.settings import ProcessOptions
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import Ended, prepare
from alchemi_jax.distributed import initialize
from alchemi_jax.launch import find_launch
from alchemi_jax.shared import gather, note_interrupted, processes_here, together, world


@contextlib.contextmanager
def connected(options: ProcessOptions, signals: Signals) -> Iterator[None]:
    """Around a command: connects its processes, if it is to have several; an error of one ends all.

    Raises:
        UsageError: if something about the processes is missing or wrong.
    """
    try:
        _connect(options)
    except (ValueError, RuntimeError) as e:
        raise UsageError(f"--processes: {str(e).rstrip('.')}.") from None
    if world().size > 1:
        # Now, when all of them do the same.
        processes_here()
        # Where the process leaves in the middle of something the others need not wait for it.
        signals.on_leave(note_interrupted)
    with together():
        yield


def _connect(options: ProcessOptions) -> None:
    asked = options.processes
    if asked is None:
        if options.rank is not None or options.coordinator is not None:
            raise ValueError("it is missing, and --rank and --coordinator go with it")
        return
    if asked == "launched":
        if options.rank is not None:
            raise ValueError("launched takes no --rank: mpirun and srun have given one")
        if find_launch(options.coordinator) is None:
            raise ValueError(
                "neither mpirun nor srun has started this process; by hand it is --processes N --rank R "
                "--coordinator HOST:PORT"
            )
        initialize(options.coordinator)
        return
    if int(asked) > 1 and (options.rank is None or options.coordinator is None):
        raise ValueError("a number of them goes with --rank R and --coordinator HOST:PORT of process 0")
    initialize(options.coordinator, int(asked), options.rank or 0)


def is_first() -> bool:
    """Whether this process holds the folder of results and speaks."""
    return world().rank == 0


def begin_together(job: Any, results: Results, begin: Callable[[], Begun], command: str) -> Begun:
    """What process 0 has begun, in all processes. The others read the input, too, and write nothing.

    Raises:
        UsageError: as of `begin`, in process 0; in another one if it reads another input.
    """
    if world().size == 1:
        return begin()
    if is_first():
        begun = begin()
        said = (begun.complete, begun.goes_on, begun.extends, str(results.at), begun.record.structures)
        _told(said)
        return begun
    plan, error = None, None
    try:
        plan = prepare(job)
    except UsageError as e:
        # If the input is wrong for all of them, the first one says so.
        error = e
    complete, goes_on, extends, at, structures = _told(None)
    if error is not None:
        raise error
    assert plan is not None
    mine = structures_of(plan.sources)
    if [s.sha256 for s in mine] != [s.sha256 for s in structures]:
        raise UsageError("this process reads other structures than process 0: give all the same files.")
    results.at = Path(at)
    record = Record(plan.settings, plan.hashes, plan.chosen, command, mine)
    return Begun(plan, record, complete, goes_on, extends)


def _told(said: Any) -> Any:
    """What process 0 says."""
    return gather(said)[0]


def end_others(ended: Ended, signals: Signals) -> int | None:
    """The exit code of a process that writes no results; None for the first one, which does."""
    if is_first():
        return None
    return signals.exit_code if ended.interrupted else OK


__all__ = ["begin_together", "connected", "end_others", "is_first"]
