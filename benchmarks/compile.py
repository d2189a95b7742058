"""How long the first call of `run` takes, beside that of another commit, and how long the imports take.

`python -m benchmarks.compile`: FIRE + NVTLangevin with six hooks in two processes that share one persistent
cache of JAX. The first compiles, the second finds what it needs.

`python -m benchmarks.compile --against COMMIT --rounds 3`: every workload in a fresh process without a
cache, in turn with the package of this tree and with that of COMMIT. Measured is the first `run` of an engine
(`init` and a few steps) after the imports and after the batch is made, and a second `run`. The workloads are
written here and use only names that both packages have.

`python -m benchmarks.compile --imports`: `import alchemi_jax` beside `import jax, equinox`, and the imports
of the README's example beside `import ase.io, jax, equinox`. With `--against`, also for COMMIT.

All processes run on one core. `cpu` is the processor time of the process: what the call would have taken if
nobody else had used the core.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
#: Steps of a first call where the number is free: compiling does not depend on it.
STEPS = 10
README_IMPORTS = """
import ase.io
from alchemi_jax import Batch, samples
from alchemi_jax.dynamics import FIRE, ConvergenceHook
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, LoggingHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.models import LennardJones
"""
#: Name, statements, and the statements that they are compared with.
IMPORTS = (
    ("import alchemi_jax", "import alchemi_jax", "import jax, equinox"),
    ("imports of the README's example", README_IMPORTS, "import ase.io, jax, equinox"),
)


# ---- Workloads: each returns an engine and a batch. They run in a process of their own.


def argon(cutoff: float = 8.5) -> Any:
    from alchemi_jax.models import LennardJones
    from benchmarks.structures import EPSILON, SIGMA

    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=cutoff)


def clusters(n: int, cutoff: float, fmax: float, n_steps: int) -> tuple[Any, Any]:
    """FIRE on perturbed clusters of 13 atoms."""
    from alchemi_jax import Batch
    from alchemi_jax.dynamics import FIRE, ConvergenceHook
    from benchmarks.structures import perturbed_clusters

    hooks = [ConvergenceHook.from_fmax(fmax)]
    batch = Batch.from_ase(perturbed_clusters(n))
    return FIRE(model=argon(cutoff), n_steps=n_steps, hooks=hooks), batch


def moving_crystals(n: int, cells: int, kelvin: float) -> tuple[Any, Any]:
    """NVE of fcc crystals of 4 cells^3 atoms."""
    import jax

    from alchemi_jax import Batch
    from alchemi_jax.dynamics import NVE, initialize_velocities
    from benchmarks.structures import crystals

    batch = Batch.from_ase(crystals(n, cells, kelvin)[0])
    batch = initialize_velocities(batch, kelvin, jax.random.key(0))
    return NVE(model=argon(), dt=4.0, n_steps=STEPS), batch


def silicon(potential: Callable[[Any], Any]) -> tuple[Any, Any]:
    """NVE of 4096 atoms of silicon at 600 K."""
    import jax
    import numpy as np
    from ase.build import bulk

    from alchemi_jax import Batch, models
    from alchemi_jax.dynamics import NVE, initialize_velocities

    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(8)
    atoms.positions += np.random.default_rng(0).normal(0, 0.02, atoms.positions.shape)
    batch = initialize_velocities(Batch.from_ase([atoms]), 600.0, jax.random.key(0))
    return NVE(model=potential(models), dt=1.0, n_steps=STEPS), batch


def pipeline() -> tuple[Any, Any]:
    """FIRE and then NVTLangevin, with six hooks, on eight clusters."""
    from alchemi_jax import Batch
    from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin
    from alchemi_jax.dynamics import hooks as h
    from alchemi_jax.dynamics.sinks import HostMemory
    from alchemi_jax.observables import kinetic_energy
    from benchmarks.structures import perturbed_clusters

    model = argon()
    relax = FIRE(
        model=model,
        n_steps=100,
        hooks=[
            ConvergenceHook.from_fmax(0.02),
            h.MaxForceClampHook(5.0),
            h.ConvergedSnapshotHook(HostMemory()),
        ],
    )
    ramp = h.TemperatureScheduleHook.ramp(20.0, 30.0, 50)
    table = h.ObservableHook({"kinetic": kinetic_energy}, frequency=10)
    md = NVTLangevin(model=model, dt=2.0, temperature=20.0, n_steps=50, hooks=[ramp, table])
    engine = (relax + md).with_hooks(h.NaNDetectorHook())
    return engine, Batch.from_ase(perturbed_clusters(8))


WORKLOADS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "W1": lambda: clusters(256, 50.0, 0.005, STEPS),
    "W2": lambda: moving_crystals(32, 4, 30.0),
    "W3": lambda: moving_crystals(1, 10, 40.0),
    "SW": lambda: silicon(lambda models: models.StillingerWeber()),
    "Tersoff": lambda: silicon(lambda models: models.Tersoff.group_iv()),
    "pipeline": pipeline,
    "W9": lambda: clusters(32, 8.5, 0.01, 500),
}


def once(name: str) -> None:
    """Runs a workload twice; prints seconds and processor seconds of both calls."""
    import jax

    import alchemi_jax

    # The tree's own package, not one that is installed.
    assert Path(alchemi_jax.__file__).resolve().is_relative_to(Path.cwd().resolve())
    engine, batch = WORKLOADS[name]()
    jax.block_until_ready(batch.positions)
    found: dict[str, float] = {}
    for call in ("first", "second"):
        begun, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(engine.run(batch).positions)
        found[call] = time.perf_counter() - begun
        found[f"{call}_cpu"] = time.process_time() - used
    print(json.dumps(found))


# ---- What starts the processes.


def fresh(code: str, tree: Path, cache: Path | None = None) -> dict[str, float]:
    """What `code` prints in a process of its own, with the package of a tree.

    Raises:
        SystemExit: if the process fails.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"PYTHONPATH": str(tree), "JAX_ENABLE_COMPILATION_CACHE": str(cache is not None)}
    # XLA remarks, at length, that code from the cache prefers not to gather.
    environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tree, check=False)
    if done.returncode:
        raise SystemExit(f"{code}\nfailed with the package of {tree}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def package_of(commit: str) -> Iterator[Path]:
    """A temporary folder with the package as it was in a commit, and with the benchmarks of this tree."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "alchemi_jax"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
        # The first process of a tree would otherwise also write the compiled Python of its modules.
        subprocess.run([sys.executable, "-m", "compileall", "-q", name], check=True)
        yield folder


def geometric_mean(ratios: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def ratio(here: list[dict[str, float]], there: list[dict[str, float]], key: str) -> float:
    """The median over the rounds of time here over time there."""
    return statistics.median(a[key] / b[key] for a, b in zip(here, there, strict=True))


def compare(names: list[str], other: Path, rounds: int) -> None:
    """Prints the first calls here and there, their ratios and the geometric means of these."""
    columns = ("first s", "there", "ratio", "cpu s", "there", "ratio", "second s", "there", "ratio")
    print(f"{'workload':10}" + "".join(f"{c:>9}" for c in columns), flush=True)
    keys = ("first", "first_cpu", "second")
    ratios: dict[str, list[float]] = {key: [] for key in keys}
    for name in names:
        code = f"from benchmarks.compile import once; once({name!r})"
        here, there = [], []
        for k in range(rounds):
            # Who is first changes from round to round.
            for tree, found in [(ROOT, here), (other, there)][:: 1 if k % 2 == 0 else -1]:
                found.append(fresh(code, tree))
        row, typical = f"{name:10}", (median_of(here), median_of(there))
        for key in keys:
            ratios[key].append(ratio(here, there, key))
            digits = 4 if key == "second" else 2
            row += "".join(f"{seconds[key]:9.{digits}f}" for seconds in typical) + f"{ratios[key][-1]:9.3f}"
        print(row, flush=True)
    means = "".join(f"{'':18}{geometric_mean(ratios[key]):9.3f}" for key in keys)
    print(f"{'geo. mean':10}{means}")


def imports(trees: dict[str, Path], rounds: int) -> None:
    """Prints medians of import times and of their ratios, in turn with what they are compared with."""
    print(f"{'':36}{'s':>7}{'base s':>8}{'ratio':>7}")
    timed = "import json, time; t = time.perf_counter()\n{}\nt = time.perf_counter() - t\n"
    timed += "print(json.dumps({{'s': t}}))"
    for where, tree in trees.items():
        for name, *both in IMPORTS:
            # The first pair fills the file cache of the machine and does not count.
            pairs = [[fresh(timed.format(code), tree) for code in both] for _ in range(rounds + 1)]
            ours, theirs = ([pair[i] for pair in pairs[1:]] for i in range(2))
            print(
                f"{name + where:36}{median_of(ours)['s']:7.2f}{median_of(theirs)['s']:8.2f}"
                f"{ratio(ours, theirs, 's'):7.2f}",
                flush=True,
            )


def with_cache() -> None:
    """Prints the first run of the pipeline in a process that compiles and in one that finds it in a cache."""
    with tempfile.TemporaryDirectory() as folder:
        for process in ("compiles", "finds what it needs"):
            found = fresh("from benchmarks.compile import once; once('pipeline')", ROOT, Path(folder))
            seconds = f"first run {found['first']:6.2f} s, the next {found['second']:6.3f} s"
            print(f"a process that {process}: {seconds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--against", metavar="COMMIT", help="compare with the package of this commit")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, help="processes of each kind: 3, for imports 7")
    parser.add_argument("--imports", action="store_true", help="compare times of imports instead")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if not (args.against or args.imports):
        with_cache()
        return
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(package_of(args.against)) if args.against else None
        if args.imports:
            trees = {"": ROOT} | ({f", {args.against}": other} if other else {})
            imports(trees, args.rounds or 7)
        elif other:
            compare(args.workloads.split(","), other, args.rounds or 3)


if __name__ == "__main__":
    main()
