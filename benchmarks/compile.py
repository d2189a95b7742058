"""How long the first run takes: FIRE + NVTLangevin with six hooks, and again in a second process.

`python -m benchmarks.compile` starts two processes on one core that share one persistent cache of JAX: the
first compiles, the second finds what it needs. Printed are the seconds of `run` for eight clusters, imports
apart.
"""

import os
import subprocess
import sys
import tempfile
import time


def once() -> None:
    """Builds the pipeline and runs a few steps of it."""
    from alchemi_jax import Batch
    from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin
    from alchemi_jax.dynamics import hooks as h
    from alchemi_jax.dynamics.sinks import HostMemory
    from alchemi_jax.models import LennardJones
    from alchemi_jax.observables import kinetic_energy
    from benchmarks.structures import EPSILON, SIGMA, perturbed_clusters

    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.5)
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
    batch = Batch.from_ase(perturbed_clusters(8))
    begun = time.perf_counter()
    out = engine.run(batch)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    engine.run(batch)
    print(f"first run {first:6.2f} s, the next {time.perf_counter() - begun:6.3f} s; {out}", flush=True)


def main() -> None:
    """Prints two lines."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # XLA remarks, at length, that code from the cache prefers not to gather.
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        for process in ("compiles", "finds what it needs"):
            print(f"a process that {process}: ", end="", flush=True)
            command = [sys.executable, "-c", "from benchmarks.compile import once; once()"]
            subprocess.run(command, env={**os.environ, **cache}, check=True)


if __name__ == "__main__":
    main()
