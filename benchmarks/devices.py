"""`python -m benchmarks.devices`: ways to use several cores, side by side.

Each way is a process of its own, in turn: W1 (256 clusters of 13 atoms, relaxed), W2 (32 crystals of 256
atoms, NVE, 200 steps), W5 (clusters of 7 to 55 atoms, relaxed, 64 in flight) and W6 (32 rutile cells of 24
atoms, five steps of NVE with CHGNet). `pinned`: one core, as other benchmarks measure; `free`: the same, the
system chooses cores; `threads`: one unchanged run a thread, each on a device of its own; `together`: the same
threads on one device of the CPU, which runs several programs at a time; `shards`: one program under
`shard_map`, one loop a device; `devices`: `engine.run(..., devices=N)`; `all`: `devices="all"`. W1 and W6
know `pinned`, `free`, `devices` and `all`. Printed: the first call, which compiles (wall and processor), and
the median and the least of later ones, s.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


WAYS = ("pinned", "free", "threads", "together", "shards", "devices", "all")
#: Ways of `run` itself; the others are written out here.
_OF_RUN = ("pinned", "free", "devices", "all")
_IN_FLIGHT = 64


def main() -> int:
    """Prints a table of medians over the rounds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--workloads", default="W2,W5")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--systems", type=int, help="of each workload; by default 256, 32, 512, 32")
    parser.add_argument("--steps", type=int, default=200, help="of W2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_measured(*args.one, args)))
        return 0
    print(f"{'workload':10}{'way':10}{'first s':>9}{'its cpu':>9}{'median s':>10}{'least s':>9}{'gain':>7}")
    for workload in args.workloads.split(","):
        found: dict[str, list[dict]] = {way: [] for way in args.ways.split(",")}
        if workload in ("W1", "W6"):
            found = {way: [] for way in found if way in _OF_RUN}
        for _ in range(args.rounds):
            for way in found:
                found[way].append(_child(workload, way, args))
        base = found.get("pinned", [])
        for way, rows in found.items():
            first, cpu, median = (statistics.median(r[k] for r in rows) for k in ("first", "cpu", "median"))
            pairs = [b["median"] / r["median"] for b, r in zip(base, rows, strict=False)]
            gain = f"{statistics.median(pairs):7.2f}" if pairs else ""
            least = min(r["least"] for r in rows)
            print(f"{workload:10}{way:10}{first:9.1f}{cpu:9.1f}{median:10.3f}{least:9.3f}{gain}", flush=True)
            if "busy" in rows[0]:
                print(f"{'':20}busy {', '.join(f'{x:.0%}' for x in rows[-1]['busy'])}")
    return 0


def _child(workload: str, way: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.devices", "--one", workload, way]
    command += ["--devices", str(args.devices), "--repeats", str(args.repeats), "--steps", str(args.steps)]
    command += ["--systems", str(args.systems)] if args.systems else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{workload} {way} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measured(workload: str, way: str, args: argparse.Namespace) -> dict[str, Any]:
    n = args.devices
    if way == "pinned":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import jax

    if way in ("threads", "shards"):
        jax.config.update("jax_num_cpu_devices", n)
    make = {"W1": _w1, "W2": functools.partial(_w2, steps=args.steps), "W5": _w5, "W6": _w6}[workload]
    run = make(way, n, **({"systems": args.systems} if args.systems else {}))
    cpu, begun = time.process_time(), time.perf_counter()
    run()
    first, cpu = time.perf_counter() - begun, time.process_time() - cpu
    times, more = [], None
    for _ in range(args.repeats):
        begun = time.perf_counter()
        more = run()
        times.append(time.perf_counter() - begun)
    out = {"first": first, "cpu": cpu, "median": statistics.median(times), "least": min(times)}
    return out | (more if isinstance(more, dict) else {})


def _given(way: str, n: int) -> dict[str, Any]:
    """What `run` is given."""
    return {"devices": {"devices": n}, "all": {"devices": "all"}}.get(way, {})


def _w1(way: str, n: int, systems: int = 256) -> Callable[[], Any]:
    from alchemi_jax import Batch
    from benchmarks import structures
    from benchmarks.workloads import relaxation

    batch = Batch.from_ase(structures.perturbed_clusters(systems), dtype="float32")
    return _run_of(way, n, relaxation(), batch)


def _w6(way: str, n: int, systems: int = 32) -> Callable[[], Any]:
    from alchemi_jax import Batch
    from alchemi_jax.dynamics import NVE
    from alchemi_jax.models import CHGNet
    from benchmarks.crystals import rutile_cells

    engine = NVE(model=CHGNet.load(), dt=1.0, n_steps=5)
    return _run_of(way, n, engine, Batch.from_ase(rutile_cells(systems), dtype="float32"))


def _run_of(way: str, n: int, engine: Any, batch: Any) -> Callable[[], Any]:
    import jax

    return lambda: jax.block_until_ready(engine.run(batch, **_given(way, n)).positions)


def _w2(way: str, n: int, systems: int = 32, steps: int = 200) -> Callable[[], Any]:
    import jax

    from alchemi_jax.dynamics import NVE
    from benchmarks import structures
    from benchmarks.workloads import argon, moving

    atoms, velocities = structures.crystals(systems)
    engine = NVE(model=argon(), dt=4.0, n_steps=steps)
    if way in _OF_RUN:
        return _run_of(way, n, engine, moving((atoms, velocities), "float32"))
    parts = [(atoms[k::n], velocities[k::n]) for k in range(n)]
    if way != "shards":
        return _in_threads(way, n, lambda k: moving(parts[k], "float32"), engine, _run_batch)
    states = [engine.init(moving(part, "float32")) for part in parts]
    step = _sharded(n)
    return lambda: jax.block_until_ready(step(engine, _stacked(states)).batch.positions)


def _w5(way: str, n: int, systems: int = 512) -> Callable[[], Any]:
    import jax

    from alchemi_jax import Batch
    from alchemi_jax.dynamics import Sampler
    from benchmarks import structures
    from benchmarks.workloads import relaxation

    atoms, engine = structures.assorted_clusters(systems), relaxation()
    if way in _OF_RUN:
        given = _given(way, n)
        whole = Batch.from_ase(atoms, dtype="float32")

        def run() -> dict[str, Any]:
            sampler = Sampler(whole, max_systems=_IN_FLIGHT, policy="largest first", **given)
            jax.block_until_ready(engine.run(sampler=sampler).positions)
            traffic = sampler.traffic
            return {"busy": getattr(traffic, "busy", None)} if getattr(traffic, "busy", None) else {}

        return run
    if way != "shards":

        def part(k: int) -> Batch:
            return Batch.from_ase(atoms[k::n], dtype="float32")

        def refilled(engine: Any, batch: Batch) -> Any:
            sampler = Sampler(batch, max_systems=_IN_FLIGHT // n, policy="largest first")
            return engine.run(sampler=sampler).positions

        return _in_threads(way, n, part, engine, refilled)
    # Fixed batches as they come: no shard can be refilled before all of them have ended.
    each = _IN_FLIGHT // n
    lots = [atoms[i : i + each] for i in range(0, systems, each)]
    room = max(sum(map(len, lot)) for lot in lots)
    batches = [Batch.from_ase(lot, dtype="float32", atom_capacity=room, system_capacity=each) for lot in lots]
    largest = max(batch.largest for batch in batches)
    states = [engine.init(_with_largest(batch, largest)) for batch in batches]
    step = _sharded(n)

    def run() -> None:
        for i in range(0, len(states), n):
            jax.block_until_ready(step(engine, _stacked(states[i : i + n])).batch.positions)

    return run


def _with_largest(batch: Any, largest: int) -> Any:
    from alchemi_jax.systems.levels import unsafe_replace

    return unsafe_replace(batch, largest=largest)


def _stacked(states: list[Any]) -> Any:
    import jax
    import jax.numpy as jnp

    from alchemi_jax.dynamics.origin import UNKNOWN
    from alchemi_jax.systems.levels import unsafe_replace

    plain = [unsafe_replace(s, origin=UNKNOWN, batch=s.batch.with_meta(None)) for s in states]
    return jax.tree.map(lambda *x: jnp.stack(x), *plain)


def _sharded(n: int) -> Callable[[Any, Any], Any]:
    """A compiled function of an engine and stacked states: each device runs the loop of its state."""
    import equinox as eqx
    import jax
    import numpy as np
    from jax.sharding import Mesh, PartitionSpec

    from alchemi_jax.dynamics.segments import run_segment

    mesh = Mesh(np.array(jax.devices()[:n]), ("parts",))

    def on_each(engine: Any, states: Any) -> Any:
        state = jax.tree.map(lambda x: x[0], states)
        out, _ = run_segment(engine, state, engine.n_steps, np.bool_(False), np.int32(0))
        return jax.tree.map(lambda x: x[None], out)

    @eqx.filter_jit
    def run(engine: Any, states: Any) -> Any:
        spec = PartitionSpec("parts")
        f = jax.shard_map(
            lambda s: on_each(engine, s), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return f(states)

    return run


def _run_batch(engine: Any, batch: Any) -> Any:
    return engine.run(batch).positions


def _in_threads(
    way: str, n: int, part: Callable[[int], Any], engine: Any, run: Callable[[Any, Any], Any]
) -> Callable[[], None]:
    import jax
    import numpy as np

    devices = [jax.devices()[k if way == "threads" else 0] for k in range(n)]
    given = []
    for k, device in enumerate(devices):
        with jax.default_device(device):
            mine = jax.tree.map(
                lambda x: jax.device_put(np.asarray(x)) if isinstance(x, jax.Array) else x, engine
            )
            given.append((mine, part(k)))

    def work(k: int) -> None:
        with jax.default_device(devices[k]):
            jax.block_until_ready(run(*given[k]))

    def run_all() -> None:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run_all


if __name__ == "__main__":
    sys.exit(main())
