"""Steps of LBFGS with 20 and with 100 remembered steps (ASE's number): `python -m benchmarks.lbfgs`.

24 Lennard-Jones clusters of each size, from random starts that fill a sphere, to two bounds on the forces, in
float64, without a bound on the steps that matters. Seconds are of a second call, without compiling.
"""

import argparse
import time

import jax
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import LBFGS, ConvergenceHook
from alchemi_jax.models import LennardJones


CLUSTERS = 24


def scattered(atoms: int, seed: int) -> Atoms:
    """Atoms at random places of a sphere, no two of them nearer than 2.9 Å."""
    rng, radius = np.random.default_rng(seed), 2.1 * atoms ** (1 / 3)
    places: list[np.ndarray] = []
    while len(places) < atoms:
        new = rng.uniform(-radius, radius, 3)
        if np.linalg.norm(new) < radius and all(np.linalg.norm(new - other) > 2.9 for other in places):
            places.append(new)
    return Atoms(f"Ar{atoms}", positions=places)


def main() -> None:
    """Print a row for each size and bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[13, 38, 64])
    parser.add_argument("--fmax", type=float, nargs="+", default=[0.05, 0.01])
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=12.0, shift=True)
    print(" atoms    fmax  steps, 20  steps, 100   ratio  ms a step, 20     100")
    for atoms in given.sizes:
        batch = Batch.from_ase([scattered(atoms, seed) for seed in range(CLUSTERS)])
        for fmax in given.fmax:
            means, ms = [], []
            for memory in (20, 100):
                hooks = [ConvergenceHook.from_fmax(fmax)]
                engine = LBFGS(model=model, memory=memory, n_steps=20_000, hooks=hooks)
                engine.run(batch)
                begun = time.process_time()
                out = engine.run(batch).take()
                ms.append(1e3 * (time.process_time() - begun) / out.steps_taken.max())
                assert out.converged.all()
                means.append(out.steps_taken.mean())
            ratio = means[0] / means[1]
            row = f"{atoms:6}{fmax:8g}{means[0]:11.0f}{means[1]:12.0f}{ratio:8.2f}{ms[0]:15.2f}{ms[1]:8.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
