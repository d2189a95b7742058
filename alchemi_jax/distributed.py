"""Several processes, on one host or many, that run the same program and share its runs."""

import contextlib
import pickle
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from alchemi_jax.launch import Launch, arguments_of_jax, find_launch
from alchemi_jax.messages import OtherProcessError, Session, World, begin_session, end_with


_session: Session | None = None


# -- beginning ---------------------------------------------------------------------------------------


def initialize(
    address: str | None = None,
    size: int | None = None,
    rank: int | None = None,
    *,
    local_devices: Any = None,
    heartbeat_seconds: int = 100,
    start_seconds: int = 300,
) -> World:
    """Connect the processes that run this program; from then on runs are shared among them.

        alchemi_jax.distributed.initialize()
        relaxed = relax_all(model, structures)      # all of them, in order, in each process

    Call it first, before the first array is made. Started by `mpirun` or `srun` it needs no arguments. By
    hand, give them, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. If there is none of
    these the program is one process, and nothing is connected: the same script runs alone.

    From then on `engine.run`, `relax_all` and `integrate_all` must be called by all processes with the same
    systems. Each runs its share, and all get all results. Files that a run writes are one for each process,
    `traj.0-of-2.zarr`; see `part_paths`. A process that is killed ends the others after
    `heartbeat_seconds`; the same command goes on from checkpoints.

    Args:
        address: of process 0, "host:port"; the port must be free.
        size, rank: the number of processes, and which of them this is, from 0.
        local_devices: numbers of the GPUs that this process uses; by default one for each process of a host.
        heartbeat_seconds: so long a process may be silent before it is taken for dead.
        start_seconds: so long processes wait for each other at the beginning.

    Raises:
        ValueError: if something about the processes is missing or wrong.
        RuntimeError: if JAX has started already, or the processes were connected in another way.
    """
    global _session
    found = find_launch(address, size, rank)
    now = World() if found is None else World(found.rank, found.size)
    if _session is not None:
        if found is not None and now != _session.world:
            raise RuntimeError(
                f"initialize was called before, as process {_session.world.rank} of {_session.world.size}; a "
                "program does so once."
            )
        return _session.world
    if jax.distributed.is_initialized():
        world = World(jax.process_index(), jax.process_count())
        _session = begin_session(world, "hand")
        return world
    if found is None or found.size == 1:
        return World()
    try:
        _connect(found, local_devices, heartbeat_seconds, start_seconds)
    except RuntimeError as e:
        if "must be called before" not in str(e):
            raise
        raise RuntimeError(
            "initialize comes too late: JAX has started. Call it before the first array is made."
        ) from None
    _session = begin_session(now, found.by)
    return now


def _connect(found: Launch, local_devices: Any, heartbeat_seconds: int, start_seconds: int) -> None:
    # It would take SIGTERM from those who want to be ended by it, or to save first.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **arguments_of_jax(found, local_devices),
        initialization_timeout=start_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


# -- who and where ------------------------------------------------------------------------------------


def world() -> World:
    """The processes that share runs: this one alone unless `initialize` has connected it to others."""
    return World() if _session is None or _session.alone else _session.world


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A context in which this process is by itself: runs are not shared, and files are written whole.

    with alchemi_jax.distributed.alone():
        if rank == 0:
            ZarrData("relaxed.zarr").write(relaxed)
    """
    session = _session
    if session is None:
        yield
        return
    session.alone += 1
    try:
        yield
    finally:
        session.alone -= 1


def processes_here() -> int:
    """How many of the processes are on this host. All of them must call this the first time."""
    if _session is None:
        return 1
    if not _session.here:
        names = gather(socket.gethostname())
        _session.here = names.count(socket.gethostname())
    return _session.here


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank; all of them must call this. Values are pickled.

    Raises:
        OtherProcessError: if another process has failed meanwhile.
    """
    if _session is None or world().size == 1:
        return [value]
    with together():
        return [pickle.loads(text) for text in _session.exchange(pickle.dumps(value, protocol=5))]


def barrier() -> None:
    """Wait until all processes have called this."""
    gather(None)


def others_ended() -> bool:
    """Whether another process has told that it failed or was interrupted. It asks at most once a second."""
    session = _session
    if session is None or world().size == 1:
        return False
    if session.ended is None and time.monotonic() - session.looked > Session.look_every:
        session.look()
    return session.ended is not None


def note_interrupted() -> None:
    """Tell the others that this process was interrupted, where nothing is raised.

    Raises:
        OtherProcessError: if it ends because another one has failed.
    """
    session = _session
    if session is None or session.world.size == 1:
        return
    if session.ended is None:
        session.tell(KeyboardInterrupt(), session.runs)
    elif not session.ended.interrupted:
        raise session.error(session.ended)


def disconnect() -> None:
    """Wait until all processes come to their end, and end the connection. Nothing follows."""
    if _session is not None:
        jax.distributed.shutdown()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around work that all processes do: an error of one of them ends all, and is raised once as itself.

    Raises:
        OtherProcessError: where another process has failed.
    """
    session = _session
    if session is None or world().size == 1:
        yield
        return
    if session.depth == 0:
        session.runs, session.messages = session.runs + 1, 0
        session.ended, session.looked = None, time.monotonic()
    session.depth += 1
    try:
        yield
    except BaseException as e:
        if session.depth > 1 or isinstance(e, OtherProcessError):
            raise
        end_with(session, e)
        raise
    finally:
        session.depth -= 1


__all__ = [
    "OtherProcessError",
    "World",
    "alone",
    "barrier",
    "disconnect",
    "gather",
    "initialize",
    "note_interrupted",
    "others_ended",
    "processes_here",
    "together",
    "world",
]
