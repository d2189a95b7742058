"""Memory of a gradient through n steps, told by XLA without running it: `python -m benchmarks.rollout`.

A crystal of 256 Lennard-Jones atoms, float32, NVE; the energy after n steps by epsilon.
"""

import argparse
import dataclasses

import jax

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.models import LennardJones
from benchmarks.structures import CUTOFF, EPSILON, SIGMA, crystals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 100, 400])
    parser.add_argument("--cells", type=int, default=4)
    args = parser.parse_args()
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF)
    batch = Batch.from_ase(crystals(1, args.cells)[0])
    state = NVE(model=model, dt=4.0).init(batch)
    print(f"state: {sum(x.nbytes for x in jax.tree.leaves(state)) / 2**20:.2f} MiB")
    for checkpoint in (None, 1, "sqrt"):
        for n in args.steps:

            def energy(epsilon, state, n=n, checkpoint=checkpoint):
                engine = NVE(model=dataclasses.replace(model, epsilon=epsilon), dt=4.0)
                return engine.rollout(state, n, checkpoint=checkpoint).batch.energy.sum()

            told = jax.jit(jax.grad(energy)).lower(EPSILON, state).compile().memory_analysis()
            print(f"checkpoint={checkpoint}, n={n}: {told.temp_size_in_bytes / 2**20:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
