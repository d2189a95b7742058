"""What the processes of a program share: who this one is, messages, and the ends of runs.

`alchemi_jax.distributed` has what users call.
"""

import contextlib
import pickle
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from alchemi_jax.messages import OtherProcessError, Session, World, end_with


_session: Session | None = None


def session() -> Session | None:
    """The processes that are connected; None: this one alone."""
    return _session


def begin(new: Session) -> None:
    """From now on these processes share runs."""
    global _session
    _session = new


# -- who and where ------------------------------------------------------------------------------------


def world() -> World:
    """The processes that share runs: this one alone unless `initialize` has connected it to others."""
    return World() if _session is None or _session.alone else _session.world


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A context in which this process works alone: runs are not shared, and files are not in parts.

    ```python
    with alchemi_jax.distributed.alone():
        if rank == 0:
            ZarrData("relaxed.zarr").write(relaxed)
    ```
    """
    known = _session
    if known is None:
        yield
        return
    known.alone += 1
    try:
        yield
    finally:
        known.alone -= 1


def processes_here() -> int:
    """How many of the processes are on this host. All of them must call this the first time."""
    if _session is None:
        return 1
    if not _session.here:
        names = gather(socket.gethostname())
        _session.here = names.count(socket.gethostname())
    return _session.here


def gather(value: Any) -> list[Any]:
    """The values of all processes, as a list by rank. All processes must call it. Values are pickled.

    Raises:
        OtherProcessError: if another process has failed meanwhile.
    """
    if _session is None or world().size == 1:
        return [value]
    with together():
        return [pickle.loads(text) for text in _session.exchange(pickle.dumps(value, protocol=5))]


def barrier() -> None:
    """Wait until all processes have called it."""
    gather(None)


def others_ended() -> bool:
    """Whether another process has told that it failed or was interrupted. It asks at most once a second."""
    known = _session
    if known is None or world().size == 1:
        return False
    if known.ended is None and time.monotonic() - known.looked > Session.look_every:
        known.look()
    return known.ended is not None


def note_interrupted() -> None:
    """Tell the others that this process was interrupted, where nothing is raised.

    Raises:
        OtherProcessError: if it ends because another one has failed.
    """
    known = _session
    if known is None or known.world.size == 1:
        return
    if known.ended is None:
        known.tell(KeyboardInterrupt(), known.runs)
    elif not known.ended.interrupted:
        raise known.error(known.ended)


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
    known = _session
    if known is None or world().size == 1:
        yield
        return
    if known.depth == 0:
        known.runs, known.messages = known.runs + 1, 0
        known.ended, known.looked = None, time.monotonic()
    known.depth += 1
    try:
        yield
    except BaseException as e:
        if known.depth > 1 or isinstance(e, OtherProcessError):
            raise
        end_with(known, e)
        raise
    finally:
        known.depth -= 1


__all__ = [
    "alone",
    "barrier",
    "begin",
    "disconnect",
    "gather",
    "note_interrupted",
    "others_ended",
    "processes_here",
    "session",
    "together",
    "world",
]
