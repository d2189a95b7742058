"""Messages between the processes of a program, and what each tells the others when it ends.

They go through the key-value store of the coordination service of JAX. They are few, one at the begin and one
at the end of a run. So a process can wait for another one for hours, without memory of a device, and can be
interrupted meanwhile.
"""

import contextlib
import json
import socket
import sys
import time
from typing import Any, NamedTuple

import jax


#: Bytes of a value in the store. Longer messages are several of them.
_PART = 1 << 21
#: Milliseconds of one wait: after each, Ctrl-C is noticed and the errors of others are looked for.
_WAIT = 500
_PREFIX = "alchemi_jax"
#: The number of errors that concern all runs from now on.
_ALWAYS = "always"


class World(NamedTuple):
    """The processes of a program.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1


class OtherProcessError(RuntimeError):
    """Another process has failed, so this one ends, too. The message says why.

    Attributes:
        rank: of the other process.
    """

    def __init__(self, text: str, rank: int):
        super().__init__(text)
        self.rank = rank


class Told(NamedTuple):
    """What a process has told of its end."""

    rank: int
    kind: str
    text: str
    interrupted: bool


class Session:
    """The processes that are connected, and where in the program this one is."""

    #: Seconds between two looks of a driver for the errors of other processes.
    look_every = 1.0

    def __init__(self, world: World, by: str):
        self.world, self.by = world, by
        #: Runs so far, messages in the present one, and how many calls of `together` this one is in.
        self.runs = self.messages = self.depth = 0
        #: How many calls of `alone` it is in.
        self.alone = 0
        #: The message before.
        self.last = ""
        self.looked = 0.0
        #: How many processes are on this host; 0: not known yet.
        self.here = 0
        self.ended: Told | None = None

    @property
    def store(self) -> Any:
        """The client of the coordination service. JAX has no public name for it."""
        from jax._src import distributed

        client = distributed.global_state.client
        if client is None:
            raise RuntimeError("the processes are not connected any more: jax.distributed was shut down.")
        return client

    @property
    def name(self) -> str:
        """The words "process 1 of 4 (node7)"."""
        return f"process {self.world.rank} of {self.world.size} ({socket.gethostname()})"

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

    def tell(self, error: BaseException, number: int | str) -> Told:
        """Tell all processes that this one ends; returns what was told first, by this one or by another."""
        mine = Told(self.world.rank, type(error).__name__, str(error), isinstance(error, KeyboardInterrupt))
        with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
            try:
                self.store.key_value_set(f"{_PREFIX}/ends/{number}", json.dumps(mine))
            except jax.errors.JaxRuntimeError:
                # Another one was first.
                self.ended = self._told()
                return mine if self.ended is None else self.ended
        return mine

    def _told(self) -> Told | None:
        try:
            found = self.store.key_value_dir_get(f"{_PREFIX}/ends/")
        except jax.errors.JaxRuntimeError:
            return None
        mine = {str(self.runs), _ALWAYS}
        told = [Told(*json.loads(text)) for key, text in found if key.rpartition("/")[2] in mine]
        return told[0] if told else None

    def look(self) -> None:
        """Look for the ends of other processes."""
        self.looked = time.monotonic()
        told = self._told()
        if told is not None and told.rank != self.world.rank:
            self.ended = told

    def error(self, told: Told) -> BaseException:
        """What this process raises because another one has ended."""
        text = f"process {told.rank} of {self.world.size}"
        if told.interrupted:
            return KeyboardInterrupt(f"{text} was interrupted.")
        return OtherProcessError(f"{text} failed with {told.kind}: {told.text}", told.rank)


def begin_session(world: World, by: str) -> Session:
    """A session in which errors that nobody catches are told to the other processes, and once to the user.

    Args:
        by: who started the processes, see `Launch`.
    """
    session, before = Session(world, by), sys.excepthook

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


def end_with(session: Session, error: BaseException) -> None:
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
    error.add_note(f"in {session.name}")


def _with_state(error: BaseException, ended: BaseException) -> BaseException:
    """The error with the state that the run has reached."""
    for name in ("state", "finished", "in_flight"):
        if hasattr(ended, name):
            setattr(error, name, getattr(ended, name))
    return error


__all__ = ["OtherProcessError", "Session", "Told", "World", "begin_session", "end_with"]
