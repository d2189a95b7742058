"""Several processes, on one host or many, that run the same program: who this one is, and messages.

Messages go through the key-value store of the coordination service of JAX. They are few, one at the begin and
one at the end of a run. So a process can wait for another one for hours, without memory of a device, and can
be interrupted meanwhile.
"""

import contextlib
import json
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from alchemi_jax.launch import Launch, arguments_of_jax, find_launch


#: Bytes of a value in the store. Longer messages are several of them.
_PART = 1 << 21
#: Milliseconds of one wait: after each, Ctrl-C is noticed and the errors of others are looked for.
_WAIT = 500
#: Seconds between two looks of a driver for the errors of other processes.
_LOOK = 1.0
_PREFIX = "alchemi_jax"
#: The number of errors that concern all runs from now on.
_ALWAYS = "always"


class World(NamedTuple):
    """The processes of a program: the number of this one, from 0, and how many there are."""

    rank: int = 0
    size: int = 1


class OtherProcessError(RuntimeError):
    """Another process has failed and has told why; this one ends with it.

    Attributes:
        rank: of the other process.
    """

    def __init__(self, text: str, rank: int):
        super().__init__(text)
        self.rank = rank


class _Told(NamedTuple):
    """What a process has told of its end."""

    rank: int
    kind: str
    text: str
    interrupted: bool


class _Session:
    """The processes that are connected, and where in the program this one is."""

    def __init__(self, world: World, by: str):
        self.world, self.by = world, by
        #: Runs so far, messages in the present one, and how many calls of `together` this one is in.
        self.runs = self.messages = self.depth = 0
        #: The message before.
        self.last = ""
        self.looked = 0.0
        #: How many processes are on this host; 0: not known yet.
        self.here = 0
        self.ended: _Told | None = None

    @property
    def store(self) -> Any:
        """The client of the coordination service. JAX has no public name for it."""
        from jax._src import distributed

        client = distributed.global_state.client
        if client is None:
            raise RuntimeError("the processes are not connected any more: jax.distributed was shut down.")
        return client

    # -- messages ------------------------------------------------------------------------------------

    def exchange(self, value: bytes) -> list[bytes]:
        """The values of all processes, by rank."""
        (rank, size), store = self.world, self.store
        # By the number of the run, so that processes understand each other also after one that has failed.
        message, self.messages = f"{_PREFIX}/{self.runs}.{self.messages}", self.messages + 1
        parts = [value[i : i + _PART] for i in range(0, len(value), _PART)] or [b""]
        for i, part in enumerate(parts):
            store.key_value_set_bytes(f"{message}/{rank}/{i}", part)
        # The number of parts comes last, and is what others wait for.
        store.key_value_set_bytes(f"{message}/{rank}/n", str(len(parts)).encode())
        out = []
        for other in range(size):
            if other == rank:
                out.append(value)
                continue
            at = f"{message}/{other}"
            count = int(self._wait(f"{at}/n"))
            out.append(b"".join(self._wait(f"{at}/{i}") for i in range(count)))
        last, self.last = self.last, message
        if last:
            # Everybody has sent this message, so nobody needs the one before.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store.key_value_delete(f"{last}/{rank}/")
        return out

    def _wait(self, key: str) -> bytes:
        while True:
            try:
                return self.store.blocking_key_value_get_bytes(key, _WAIT)
            except jax.errors.JaxRuntimeError as e:
                if "DEADLINE_EXCEEDED" not in str(e):
                    raise
            self.look()
            if self.ended is not None:
                raise self.error(self.ended)

    # -- ends ----------------------------------------------------------------------------------------

    def tell(self, error: BaseException, number: int | str) -> _Told:
        """Tell all processes that this one ends; returns what was told first, by this one or by another."""
        mine = _Told(self.world.rank, type(error).__name__, str(error), isinstance(error, KeyboardInterrupt))
        with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
            try:
                self.store.key_value_set(f"{_PREFIX}/ends/{number}", json.dumps(mine))
            except jax.errors.JaxRuntimeError:
                # Another one was first.
                self.ended = self._told()
                return mine if self.ended is None else self.ended
        return mine

    def _told(self) -> _Told | None:
        try:
            found = self.store.key_value_dir_get(f"{_PREFIX}/ends/")
        except jax.errors.JaxRuntimeError:
            return None
        mine = {str(self.runs), _ALWAYS}
        told = [_Told(*json.loads(text)) for key, text in found if key.rpartition("/")[2] in mine]
        return told[0] if told else None

    def look(self) -> None:
        """Look for the ends of other processes."""
        self.looked = time.monotonic()
        told = self._told()
        if told is not None and told.rank != self.world.rank:
            self.ended = told

    def error(self, told: _Told) -> BaseException:
        """What this process raises because another one has ended."""
        text = f"process {told.rank} of {self.world.size}"
        if told.interrupted:
            return KeyboardInterrupt(f"{text} was interrupted.")
        return OtherProcessError(f"{text} failed with {told.kind}: {told.text}", told.rank)


_session: _Session | None = None


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
        _session = _begin(world, "hand")
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
    _session = _begin(now, found.by)
    return now


def _connect(found: Launch, local_devices: Any, heartbeat_seconds: int, start_seconds: int) -> None:
    # It would take SIGTERM from those who want to be ended by it, or to save first.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **arguments_of_jax(found, local_devices),
        initialization_timeout=start_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


def _begin(world: World, by: str) -> _Session:
    session, before = _Session(world, by), sys.excepthook

    def tell_uncaught(kind: Any, error: BaseException, trace: Any) -> None:
        if isinstance(error, OtherProcessError):
            # It is told where it happened. Processes that were started by hand have terminals of their own.
            if by == "hand":
                print(f"process {world.rank} of {world.size} ends: {error}", file=sys.stderr)
            return
        told = session.tell(error, _ALWAYS)
        if told.rank != world.rank and (told.kind, told.text) == (type(error).__name__, str(error)):
            return
        before(kind, error, trace)

    sys.excepthook = tell_uncaught
    return session


# -- who and where ------------------------------------------------------------------------------------


def world() -> World:
    """The processes that share runs: this one alone unless `initialize` has connected it to others."""
    return World() if _session is None else _session.world


def processes_here() -> int:
    """How many of the processes are on this host. All of them must call this the first time."""
    if _session is None:
        return 1
    if not _session.here:
        names = gather(socket.gethostname())
        _session.here = names.count(socket.gethostname())
    return _session.here


def process_name() -> str:
    """The words "process 1 of 4 (node7)"."""
    rank, size = world()
    return f"process {rank} of {size} ({socket.gethostname()})"


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank; all of them must call this. Values are pickled.

    Raises:
        OtherProcessError: if another process has failed meanwhile.
    """
    if _session is None or _session.world.size == 1:
        return [value]
    with together():
        return [pickle.loads(text) for text in _session.exchange(pickle.dumps(value, protocol=5))]


def barrier() -> None:
    """Wait until all processes have called this."""
    gather(None)


def others_ended() -> bool:
    """Whether another process has told that it failed or was interrupted. It asks at most once a second."""
    session = _session
    if session is None or session.world.size == 1:
        return False
    if session.ended is None and time.monotonic() - session.looked > _LOOK:
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
    if session is None or session.world.size == 1:
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
        _end(session, e)
        raise
    finally:
        session.depth -= 1


def _end(session: _Session, error: BaseException) -> None:
    """Tell the others of an error; raises what this process raises in its place, if another was first."""
    first = session.ended if session.ended is not None else session.tell(error, session.runs)
    is_mine = first.rank == session.world.rank
    if isinstance(error, KeyboardInterrupt):
        if not is_mine and not first.interrupted:
            # It was told to stop because another process has failed.
            raise _with_state(session.error(first), error) from None
        return
    if not is_mine and (first.kind, first.text) == (type(error).__name__, str(error)):
        raise _with_state(session.error(first), error) from error
    error.add_note(f"in {process_name()}")


def _with_state(error: BaseException, ended: BaseException) -> BaseException:
    """The error with the state that the run has reached."""
    for name in ("state", "finished", "in_flight"):
        if hasattr(ended, name):
            setattr(error, name, getattr(ended, name))
    return error


def alone(work: Callable[[], Any]) -> Any:
    """What process 0 gets from a function that it alone calls; all processes get it.

    Raises:
        Whatever the function raises, in process 0; OtherProcessError in the others.
    """
    with together():
        if world().size == 1:
            return work()
        return gather(work() if world().rank == 0 else None)[0]


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
    "process_name",
    "processes_here",
    "together",
    "world",
]
