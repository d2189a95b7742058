"""Dask beside plain processes: `python -m benchmarks.cluster [--workers 2] [--batches 12] [--repeats 3]`.

The same crystals (NVE) and clusters (relaxations) by so many plain processes, each pinned to a core with its
share of the systems, and by as many workers of a Dask cluster of this machine. Both have compiled before; in
turn, since others may use the machine. Prints the gain of one over the other, and how long workers were busy.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, Sampler, connect, run_on_cluster
from benchmarks import structures, workloads


FLYING = 32


def made(kind: str, batches: int, steps: int) -> tuple[Any, list[Atoms]]:
    """An engine, and the systems of so many full batches."""
    n = FLYING * batches
    if kind == "dynamics":
        atoms, velocities = structures.crystals(n)
        for system, v in zip(atoms, velocities, strict=True):
            # Of ASE's unit of time.
            system.set_velocities(np.asarray(v) * structures.SPEED**-1)
        return NVE(model=workloads.argon(), dt=4.0, n_steps=steps), atoms
    return workloads.relaxation(), structures.assorted_clusters(8 * n)


def sampler(systems: list[Atoms]) -> Sampler:
    return Sampler(Batch.from_ase(systems, dtype="float32"), max_systems=FLYING)


def plain(kind: str, batches: int, steps: int, part: int, parts: int, pipe: Any) -> None:
    """One of the plain processes: runs its share whenever it is told to."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[part % len(cores)]})
    engine, systems = made(kind, batches, steps)
    mine = systems[part::parts]
    while pipe.recv():
        began = time.perf_counter()
        jax.block_until_ready(engine.run(sampler=sampler(mine)).positions)
        pipe.send(time.perf_counter() - began)


def measured(kind: str, workers: int, batches: int, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, in turn; the first of each, which compiles, is left out."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for part in range(workers):
        here, there = context.Pipe()
        process = context.Process(
            target=plain, args=(kind, batches, steps, part, workers, there), daemon=True
        )
        process.start()
        pipes.append(here)
        processes.append(process)
    engine, systems = made(kind, batches, steps)
    plains, dasks, busy = [], [], []
    with connect(f"local:{workers}") as client:
        for _ in range(repeats + 1):
            for pipe in pipes:
                pipe.send(True)
            plains.append(max(pipe.recv() for pipe in pipes))
            source = sampler(systems)
            began = time.perf_counter()
            out = run_on_cluster(engine, source, client)
            dasks.append(time.perf_counter() - began)
            busy.append(sum(source.traffic.busy) / workers)
            assert out.num_systems == len(systems)
    for pipe in pipes:
        pipe.send(False)
    for process in processes:
        process.join()
    return {
        "what": kind,
        "workers": workers,
        "systems": len(systems),
        "plain_s": plains[1:],
        "dask_s": dasks[1:],
        "dask_over_plain": statistics.median(p / d for p, d in zip(plains[1:], dasks[1:], strict=True)),
        "busy": statistics.median(busy[1:]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=24, help="full batches in all")
    parser.add_argument("--steps", type=int, default=2000, help="of dynamics")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", default="dynamics,relaxations")
    args = parser.parse_args()
    for kind in args.kinds.split(","):
        row = measured(kind, args.workers, args.batches, args.steps, args.repeats)
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
