"""Long runs against published values: the Lennard-Jones fluid near its triple point.

`python -m benchmarks.physics` samples argon-like fluids of 500 atoms by NVTLangevin and compares mean energy
and pressure with the reference values of NIST (Standard Reference Simulation Website, "LJ fluid properties",
Metropolis Monte Carlo, 500 particles, cutoff 3 sigma with long-range corrections). Errors are of block means.
"""

import argparse
from typing import Any

import jax
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones
from alchemi_jax.observables import pressure
from alchemi_jax.units import GPA, KB
from benchmarks.structures import EPSILON, MASS, SIGMA


#: T*, density*, U*/N with its error, p* with its error.
NIST = (
    (0.85, 0.776, -5.5121, 4.6e-4, 6.7714e-3, 1.8e-3),
    (0.85, 0.860, -6.0305, 2.4e-4, 1.2660, 1.4e-3),
)
ATOMS, CUTOFF = 500, 3.0


def fluid(density: float, seed: int) -> Atoms:
    """500 atoms on a simple lattice, shaken."""
    side = (ATOMS / density) ** (1 / 3) * SIGMA
    n = 8
    sites = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(sites))[:ATOMS]
    positions = (sites[chosen] + 0.5) * side / n + rng.normal(0, 0.1, (ATOMS, 3))
    return Atoms(f"Ar{ATOMS}", positions=positions, cell=[side] * 3, pbc=True)


def tails(density: float) -> tuple[float, float]:
    """What lies beyond the cutoff in a uniform fluid: U*/N and p*."""
    s3 = CUTOFF**-3
    energy = 8 / 3 * np.pi * density * (s3**3 / 3 - s3)
    return energy, 16 / 3 * np.pi * density**2 * (2 / 3 * s3**3 - s3)


def blocks(values: np.ndarray, n: int = 20) -> tuple[float, float]:
    """Mean and its standard error from n block means."""
    means = np.array([part.mean() for part in np.array_split(values, n)])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(n))


def main() -> None:
    """Prints a table: ours, theirs, and the difference in standard errors of both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.physics", description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--replicas", type=int, default=4)
    args = parser.parse_args()
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF * SIGMA)
    states = [state for state in NIST for _ in range(args.replicas)]
    batch = Batch.from_ase([fluid(state[1], i) for i, state in enumerate(states)])
    batch = FIRE(model=model, n_steps=200, hooks=[ConvergenceHook.from_fmax(0.5)]).run(batch)
    kelvin = np.array([state[0] for state in states]) * EPSILON / KB
    seen = ObservableHook({"e": lambda ctx: ctx.batch.energy, "p": pressure}, frequency=10, stress=True)
    settings: dict[str, Any] = {"model": model, "dt": 5.0, "temperature": kelvin, "friction": 0.005}
    thermalized = NVTLangevin(**settings, n_steps=max(args.steps // 10, 1)).run(batch, key=jax.random.key(1))
    NVTLangevin(**settings, n_steps=args.steps, hooks=[seen]).run(thermalized, key=jax.random.key(2))
    print(f"{ATOMS} atoms of mass {MASS}, {args.steps} steps of 5 fs, {args.replicas} replicas")
    print(f"{'T*':>6}{'rho*':>7}{'':4}{'ours':>20}{'NIST':>20}{'sigmas':>9}")
    for k, (t, density, u, u_error, p, p_error) in enumerate(NIST):
        mine = slice(k * args.replicas, (k + 1) * args.replicas)
        more_u, more_p = tails(density)
        energies = seen.table["e"][:, mine].T / ATOMS / EPSILON + more_u
        pressures = seen.table["p"][:, mine].T * GPA * SIGMA**3 / EPSILON + more_p
        for name, series, value, error in (("U*", energies, u, u_error), ("p*", pressures, p, p_error)):
            each = [blocks(replica) for replica in series]
            mean = float(np.mean([m for m, _ in each]))
            own = float(np.sqrt(np.sum([s**2 for _, s in each]))) / len(each)
            sigmas = (mean - value) / np.hypot(own, error)
            ours, theirs = f"{mean:.4f} +- {own:.4f}", f"{value:.4f} +- {error:.4f}"
            print(f"{t:6.2f}{density:7.3f}{name:>4}{ours:>20}{theirs:>20}{sigmas:+9.1f}")


if __name__ == "__main__":
    main()
