"""Several processes, on one host or many, that run the same program and share its runs."""

from typing import Any

import jax

from alchemi_jax.launch import Launch, arguments_of_jax, find_launch
from alchemi_jax.messages import OtherProcessError, World, begin_session
from alchemi_jax.shared import alone, barrier, begin, gather, session, world


def initialize(
    address: str | None = None,
    size: int | None = None,
    rank: int | None = None,
    *,
    local_devices: Any = None,
    heartbeat_seconds: int = 100,
    start_seconds: int = 300,
) -> World:
    """Connect the processes that run this program. From then on they share runs.

        alchemi_jax.distributed.initialize()
        relaxed = relax_all(model, structures)      # all of them, in order, in each process

    Call it first, before the first array is made. Started by `mpirun` or `srun` it needs no arguments. By
    hand give the arguments, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any
    of these the program is one process, and nothing is connected: the same script runs alone.

    From then on `engine.run`, `relax_all` and `integrate_all` must be called by all processes with the same
    systems. Each runs its share, and all get all results. Each process writes its own file,
    `traj.0-of-2.zarr`; see `part_paths`. If a process is killed the others end after `heartbeat_seconds`; the
    same command continues from checkpoints.

    Args:
        address: of process 0, "host:port"; the port must be free.
        size, rank: number of processes, and rank of this one, from 0.
        local_devices: numbers of the GPUs that this process uses; by default one for each process of a host.
        heartbeat_seconds: time without a sign of a process after which it counts as dead, s.
        start_seconds: longest time that processes wait for each other at the start, s.

    Raises:
        ValueError: if an argument or variable is missing or wrong.
        RuntimeError: if JAX has started already, or the processes were connected in another way.
    """
    found = find_launch(address, size, rank)
    now = World() if found is None else World(found.rank, found.size)
    known = session()
    if known is not None:
        if found is not None and now != known.world:
            rank, size = known.world
            raise RuntimeError(
                f"initialize was called before, as process {rank} of {size}; a program does so once."
            )
        return known.world
    if jax.distributed.is_initialized():
        world = World(jax.process_index(), jax.process_count())
        begin(begin_session(world, "hand"))
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
    begin(begin_session(now, found.by))
    return now


def _connect(found: Launch, local_devices: Any, heartbeat_seconds: int, start_seconds: int) -> None:
    # It would take SIGTERM from those who want to be ended by it, or to save first.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        **arguments_of_jax(found, local_devices),
        initialization_timeout=start_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
    )


__all__ = ["OtherProcessError", "World", "alone", "barrier", "gather", "initialize", "world"]
