"""What a sweep costs: 16 temperatures at once against a Python loop of 16 runs, compiling apart.

`python -m benchmarks.sweep`: Langevin dynamics of W1's 13-atom clusters and, with lists that are renewed, of
small crystals. Both sides run compiled code that has run before; rounds in turn, medians.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities, sweep
from alchemi_jax.models import LennardJones
from benchmarks.structures import CUTOFF, EPSILON, SIGMA, crystals, perturbed_clusters


TEMPERATURES = np.linspace(5.0, 40.0, 16)


def warm(engine, batch, key):
    return initialize_velocities(batch, engine.temperature, key)


def ratio(name: str, structures: list, steps: int, rounds: int) -> float:
    batch = Batch.from_ase(structures)
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF)
    engine = NVTLangevin(model=model, dt=4.0, temperature=1.0, friction=0.01, n_steps=steps)
    key = jax.random.key(0)

    def at_once() -> np.ndarray:
        table = sweep(engine, batch, temperature=TEMPERATURES, key=key, start=warm)
        return table["energy"].reshape(16, -1)

    def one_by_one() -> np.ndarray:
        energies = []
        for i, kelvin in enumerate(TEMPERATURES):
            own = jax.random.fold_in(key, i)
            begun = initialize_velocities(batch, kelvin, own)
            out = dataclasses.replace(engine, temperature=kelvin).run(begun, key=own)
            energies.append(np.asarray(out.energy)[: batch.num_systems])
        return np.stack(energies)

    def loops() -> np.ndarray:
        states = [start(i, kelvin) for i, kelvin in enumerate(TEMPERATURES)]
        return np.stack([np.asarray(looped(s, k)) for s, k in zip(states, TEMPERATURES, strict=True)])

    def start(i, kelvin):
        own = jax.random.fold_in(key, i)
        state = engine.init(initialize_velocities(batch, kelvin, own), key=own)
        return state.replace(batch=state.batch)

    @jax.jit
    def looped(state, kelvin):
        return dataclasses.replace(engine, temperature=jnp.asarray(kelvin)).loop(state).batch.energy

    ways = {"sweep": at_once, "16 runs": one_by_one, "16 jitted loops": loops}
    found, first, times = {}, {}, {way: [] for way in ways}
    for way, run in ways.items():
        begun = time.perf_counter()
        found[way] = run()
        first[way] = time.perf_counter() - begun
    for _ in range(rounds):
        for way, run in ways.items():
            begun = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - begun)
    # The noise is the same; rounding grows over the steps.
    apart = np.abs(found["sweep"] - found["16 runs"]).max() / np.abs(found["16 runs"]).max()
    took = {way: statistics.median(t) for way, t in times.items()}
    print(f"{name}, {steps} steps, {batch.dtype}: largest difference of energies {apart:.1e}")
    for way in ways:
        print(f"  {way:16} {took[way]:8.3f} s, first call {first[way]:6.2f} s, ", end="")
        print(f"{took[way] / took['sweep']:5.2f} times the sweep", flush=True)
    return took["16 runs"] / took["sweep"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clusters", type=int, nargs="+", default=[1, 8, 64, 256])
    args = parser.parse_args()
    for n in args.clusters:
        ratio(f"{n} clusters of 13 atoms", perturbed_clusters(n), args.steps, args.rounds)
    ratio("1 crystal of 32 atoms", crystals(1, 2)[0], args.steps, args.rounds)


if __name__ == "__main__":
    main()
