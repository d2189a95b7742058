"""The first result: seconds from a fresh process to a relaxed batch of 32 clusters, nothing compiled before.

`python -m benchmarks.first`. Each round is a process of its own, on one core, without a compile cache: it
imports, makes the batch, compiles, relaxes by FIRE to fmax 0.01 eV/Å and reads the energies. With `--warm`
a second process finds in JAX's cache on disk what the first one compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


CODE = """
import json, sys, time
begun = float(sys.argv[1])
from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook
from alchemi_jax.models import LennardJones
imported = time.time() - begun
from benchmarks.structures import EPSILON, SIGMA, perturbed_clusters
batch = Batch.from_ase(perturbed_clusters(32))
model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.5)
relaxed = FIRE(model=model, n_steps=500, hooks=[ConvergenceHook.from_fmax(0.01)]).run(batch).take()
assert relaxed.converged.all()
print(json.dumps({"imported": imported, "relaxed": time.time() - begun, "of the core": time.process_time()}))
"""


def once(cache: str | None) -> dict[str, float]:
    """Seconds from the start of a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", CODE, str(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        if args.warm:
            once(folder)
        found = [once(folder if args.warm else None) for _ in range(args.rounds)]
    # "of the core": what it would have taken if nobody else had used the core.
    for what in ("imported", "relaxed", "of the core"):
        times = [f[what] for f in found]
        print(f"{what}: {statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})")


if __name__ == "__main__":
    main()
