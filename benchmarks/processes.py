"""`python -m benchmarks.processes`: two processes against one, side by side, each pinned to a core.

W2 (32 crystals of 256 atoms, NVE) and W5 (clusters of 7 to 55 atoms, relaxed, 64 in flight in each process).
In turn one process and two of them; the first call, which compiles, is left out, and processes wait for each
other before each later one. Printed: the median of later calls, s, until all processes have all results; the
processor time of the busiest process, s; and how many times as fast two are, by both. On a machine that
others use the second says more.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any


_IN_FLIGHT = 64


def main() -> int:
    """Prints a table of medians over the rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--workloads", default="W2,W5")
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--systems", type=int, help="of each workload; by default 32 and 2048")
    parser.add_argument("--steps", type=int, default=1000, help="of W2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--one", nargs=4, metavar=("WORKLOAD", "ADDRESS", "SIZE", "RANK"), help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.one:
        workload, address, size, rank = args.one
        found = _measured(workload, address, int(size), int(rank), args)
        if rank == "0":
            print(json.dumps(found))
        return 0
    print(f"{'workload':10}{'processes':>10}{'median s':>10}{'its cpu':>10}{'gain':>7}{'by cpu':>8}")
    for workload in args.workloads.split(","):
        rows: dict[int, list[dict[str, float]]] = {1: [], args.size: []}
        for _ in range(args.rounds):
            for size, found in rows.items():
                found.append(_together(workload, size, args))
        for size, found in rows.items():
            median, cpu = (statistics.median(r[k] for r in found) for k in ("median", "cpu"))
            pairs = list(zip(rows[1], found, strict=True))
            wall = statistics.median(a["median"] / b["median"] for a, b in pairs)
            by_cpu = statistics.median(a["cpu"] / b["cpu"] for a, b in pairs)
            print(f"{workload:10}{size:>10}{median:10.3f}{cpu:10.3f}{wall:7.2f}{by_cpu:8.2f}", flush=True)
    return 0


def _together(workload: str, size: int, args: argparse.Namespace) -> dict[str, float]:
    """The figures of so many processes at a time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.processes", "--repeats", str(args.repeats)]
    command += ["--steps", str(args.steps), *(["--systems", str(args.systems)] if args.systems else [])]
    started = [
        subprocess.Popen(
            [*command, "--one", workload, address, str(size), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{workload} failed:\n{errors[-2000:]}")
    return json.loads(said[0][0].splitlines()[-1])


def _measured(
    workload: str, address: str, size: int, rank: int, args: argparse.Namespace
) -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    from alchemi_jax import distributed

    distributed.initialize(address, size, rank)
    run = _work(workload, args)
    run()
    walls, cpus = [], []
    for _ in range(args.repeats):
        distributed.barrier()
        began, spent = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - began)
        cpus.append(max(distributed.gather(time.process_time() - spent)))
    return {"median": statistics.median(walls), "cpu": statistics.median(cpus)}


def _work(workload: str, args: argparse.Namespace) -> Any:
    """A function that runs the workload once."""
    import numpy as np

    from alchemi_jax import Batch
    from alchemi_jax.dynamics import NVE, Sampler
    from benchmarks import structures
    from benchmarks.workloads import argon, moving, relaxation

    if workload == "W2":
        batch = moving(structures.crystals(args.systems or 32), "float32")
        nve = NVE(model=argon(), dt=4.0, n_steps=args.steps)
        return lambda: np.asarray(nve.run(batch).positions)
    atoms = structures.assorted_clusters(args.systems or 2048)
    engine, whole = relaxation(), Batch.from_ase(atoms, dtype="float32")

    def relax() -> Any:
        sampler = Sampler(whole, max_systems=_IN_FLIGHT, policy="best fit")
        return np.asarray(engine.run(sampler=sampler).positions)

    return relax


if __name__ == "__main__":
    raise SystemExit(main())
