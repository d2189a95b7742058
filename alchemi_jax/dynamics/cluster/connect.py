"""Clients of Dask: at the address of a scheduler, or with processes of this machine as workers."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from alchemi_jax.errors import description


LOCAL = "local:"
#: Seconds in which a scheduler must answer.
_ANSWER = 10
#: Seconds between looks whether all workers of this machine are there.
_AGAIN = 3.0


def load_dask() -> Any:
    """The module `distributed` of Dask.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import distributed
    except ImportError as e:
        raise ImportError(
            "Runs on a cluster need Dask, which is not installed: pip install distributed, or in a clone of "
            "alchemi_jax pip install -e '.[cluster]'."
        ) from e
    return distributed


def check_client(client: Any) -> Any:
    """The client, if it is one that a run can use.

    Raises:
        ImportError: saying what to install. TypeError, ValueError: saying what to give.
    """
    distributed = load_dask()
    if not isinstance(client, distributed.Client):
        raise TypeError(
            "client must be a distributed.Client, such as distributed.Client('tcp://host:8786'), not "
            f"{description(client)}."
        )
    if client.asynchronous:
        raise TypeError("client is asynchronous: give one that is not, Client(address).")
    if client.status != "running":
        raise ValueError(f"client is {client.status}: it must be connected to a scheduler.")
    return client


def local_workers(where: str) -> int | None:
    """The number of workers in "local:N"; None for an address.

    Raises:
        ValueError: if there is no such number.
    """
    if not where.startswith(LOCAL):
        return None
    number = where.removeprefix(LOCAL)
    if not (number.isdecimal() and 0 < int(number) <= 10_000):
        raise ValueError(f"local:N names a number of workers, as in local:4, not {where[:80]!r}.")
    return int(number)


@contextlib.contextmanager
def connect(where: str) -> Iterator[Any]:
    """A client of Dask, which is closed at the end of the context.

        with connect("local:4") as client:
            relaxed = relax_all(model, structures, client=client)

    A script that uses "local:N" must run its code under `if __name__ == "__main__":`, because the workers are
    new processes that import the script.

    Args:
        where: the address of a scheduler, as in "tcp://host:8786"; or "local:N", which starts N workers on
            this machine, each on a core of its own as far as there are cores, and ends them at the end.

    Raises:
        ImportError: saying what to install.
        ValueError: if no scheduler answers at the address, or no workers can be started.
    """
    distributed = load_dask()
    n = local_workers(where)
    with contextlib.ExitStack() as stack:
        if n is None:
            client = stack.enter_context(_answering(distributed, where))
        else:
            client = stack.enter_context(_local(distributed, n))
        yield client


def _answering(distributed: Any, address: str) -> Any:
    try:
        return distributed.Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as e:
        reason = " ".join(str(e).split()).rstrip(".") or type(e).__name__
        raise ValueError(
            f"no Dask scheduler answers at {address[:200]!r} ({reason}). Give the address that "
            "`dask scheduler` prints, as in tcp://host:8786, or local:N for N processes of this machine."
        ) from None


@contextlib.contextmanager
def _local(distributed: Any, n: int) -> Iterator[Any]:
    from alchemi_jax.dynamics.cluster.plugin import PinToCores

    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    try:
        # What Dask logs of workers that die is said by the run.
        cluster = distributed.LocalCluster(
            n_workers=n,
            threads_per_worker=1,
            # Any port, and of this machine alone: None would ask for 8787.
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as e:
        reason = " ".join(str(e).split()).rstrip(".")
        raise ValueError(f"local:{n} cannot start its workers: {reason}.") from e
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        if len(cores) > 1:
            client.register_plugin(PinToCores(cores))
        with _kept(cluster, n):
            yield client


@contextlib.contextmanager
def _kept(cluster: Any, n: int) -> Iterator[None]:
    """Start workers again that Dask has given up: it does so if one dies while it starts."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(_AGAIN):
            if len(cluster.workers) < n:
                cluster.scale(n)

    thread = threading.Thread(target=keep, daemon=True, name="alchemi-jax workers")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


__all__ = ["LOCAL", "check_client", "connect", "load_dask", "local_workers"]
