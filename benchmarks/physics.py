"""Long runs against published values: the Lennard-Jones fluid near its triple point.

`python -m benchmarks.physics` samples argon-like fluids of 500 atoms and compares with the reference values
of NIST (Standard Reference Simulation Website, "LJ fluid properties", Metropolis Monte Carlo, 500 particles,
cutoff 3 sigma with long-range corrections): mean energy and pressure by NVTLangevin at their densities, and
the mean density by NPT at their pressure. Errors are of block means. `--drift` runs NVE on W2 for 10,000
steps instead and prints how far the energy went, in both precisions.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NPT, NVE, ConvergenceHook, NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import AbstractPair, LennardJones
from alchemi_jax.observables import kinetic_energy, pressure, volume
from alchemi_jax.units import GPA, KB
from benchmarks import structures
from benchmarks.structures import EPSILON, SIGMA
from benchmarks.workloads import moving


#: T*, density*, U*/N with its error, p* with its error.
NIST = (
    (0.85, 0.776, -5.5121, 4.6e-4, 6.7714e-3, 1.8e-3),
    (0.85, 0.860, -6.0305, 2.4e-4, 1.2660, 1.4e-3),
)
ATOMS, CUTOFF = 500, 3.0
MODEL = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF * SIGMA)
DT = 5.0


def fluid(density: float, seed: int) -> Atoms:
    """500 atoms on a simple lattice with vacancies, shaken."""
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


def blocks(series: np.ndarray, n: int = 20) -> tuple[float, float]:
    """Mean over replicas [replicas, frames] and its standard error from n block means of each."""
    means = np.array([[part.mean() for part in np.array_split(replica, n)] for replica in series])
    return float(means.mean()), float(means.std(axis=1, ddof=1).mean() / np.sqrt(means.size))


def row(label: str, name: str, found: tuple[float, float], value: float, error: float) -> None:
    """Prints ours, theirs, and the difference in standard errors of both."""
    ours, theirs = f"{found[0]:.4f} +- {found[1]:.4f}", f"{value:.4f} +- {error:.4f}"
    sigmas = (found[0] - value) / np.hypot(found[1], error)
    print(f"{label:24}{name:>6}{ours:>20}{theirs:>20}{sigmas:+9.1f}", flush=True)


def thermalized(states: list[tuple], steps: int) -> tuple[Batch, np.ndarray]:
    """Fluids at the temperatures and densities of `states`, and the temperatures, K."""
    batch = Batch.from_ase([fluid(state[1], i) for i, state in enumerate(states)])
    batch = FIRE(model=MODEL, n_steps=200, hooks=[ConvergenceHook.from_fmax(0.5)]).run(batch)
    kelvin = np.array([state[0] for state in states]) * EPSILON / KB
    engine = NVTLangevin(model=MODEL, dt=DT, temperature=kelvin, friction=0.005, n_steps=steps)
    return engine.run(batch, key=jax.random.key(1)), kelvin


def constant_volume(batch: Batch, kelvin: np.ndarray, steps: int, replicas: int) -> None:
    """Mean energy and pressure by NVTLangevin."""
    seen = ObservableHook({"e": lambda ctx: ctx.batch.energy, "p": pressure}, frequency=10, stress=True)
    engine = NVTLangevin(model=MODEL, dt=DT, temperature=kelvin, friction=0.005, n_steps=steps, hooks=[seen])
    engine.run(batch, key=jax.random.key(2))
    for k, (t, density, u, u_error, p, p_error) in enumerate(NIST):
        mine = slice(k * replicas, (k + 1) * replicas)
        more_u, more_p = tails(density)
        label = f"NVT T*={t} rho*={density}"
        energies = seen.table["e"][:, mine].T / ATOMS / EPSILON + more_u
        row(label, "U*", blocks(energies), u, u_error)
        row(label, "p*", blocks(seen.table["p"][:, mine].T * GPA * SIGMA**3 / EPSILON + more_p), p, p_error)


def constant_pressure(batch: Batch, kelvin: np.ndarray, steps: int, replicas: int) -> None:
    """Mean density by NPT; the pressure beyond the cutoff is that of the reference's density."""
    wanted = np.array([p - tails(density)[1] for _, density, _, _, p, _ in NIST for _ in range(replicas)])
    settings: dict[str, Any] = {"model": MODEL, "dt": DT, "temperature": kelvin}
    settings["pressure"] = wanted * EPSILON / SIGMA**3 / GPA
    batch = initialize_velocities(batch, kelvin, jax.random.key(3))
    batch = NPT(**settings, n_steps=max(steps // 5, 1)).run(batch)
    seen = ObservableHook({"v": volume}, frequency=10)
    NPT(**settings, n_steps=steps, hooks=[seen]).run(batch)
    for k, (t, density, _, _, p, p_error) in enumerate(NIST):
        mine = slice(k * replicas, (k + 1) * replicas)
        found = blocks(ATOMS * SIGMA**3 / seen.table["v"][:, mine].T)
        # An error of the pressure is one of the density, by the slope between the two states.
        slope = (NIST[1][1] - NIST[0][1]) / (NIST[1][4] - NIST[0][4])
        row(f"NPT T*={t} p*={p:.4f}", "rho*", found, density, slope * p_error)


class Switched(AbstractPair):
    """Lennard-Jones that falls to zero from 7.5 Å to the cutoff, as in `drift_jaxmd.py`: how far
    an energy drifts depends more on the cutoff than on anything else."""

    cutoff: float = structures.CUTOFF
    skin: float = 1.0

    def pair_energy(self, squared, a, b):
        end, onset = self.cutoff**2, 7.5**2
        switch = (end - squared) ** 2 * (end + 2 * squared - 3 * onset) / (end - onset) ** 3
        s6 = (SIGMA**2 / squared) ** 3
        return 4 * EPSILON * (s6 * s6 - s6) * jnp.where(squared < onset, 1.0, switch)


def drift(systems: int = 32, steps: int = 10_000) -> None:
    """The total energy of W2 in NVE, eV an atom: slope over the run, and how it fluctuates."""
    for dtype in ("float32", "float64"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        batch = moving(structures.crystals(systems), dtype)
        total = ObservableHook({"e": lambda ctx: ctx.batch.energy, "k": kinetic_energy}, frequency=50)
        NVE(model=Switched(), dt=4.0, n_steps=steps, hooks=[total]).run(batch)
        energy = (total.table["e"].astype(float) + total.table["k"]) / 256
        time = total.table["step"] * 4e-6
        slopes = np.polyfit(time, energy, 1)[0]
        rest = (energy - energy.mean(0)).std()
        error = slopes.std(ddof=1) / np.sqrt(systems)
        print(
            f"{dtype}: drift {slopes.mean():+.2e} +- {error:.1e} eV/atom/ns over "
            f"{steps} steps of 4 fs, {systems} systems; fluctuation {rest:.1e} eV/atom, kinetic energy "
            f"{total.table['k'].mean() / 256:.1e}",
            flush=True,
        )


def main() -> None:
    """Prints the table, or the drift."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.physics", description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--drift", action="store_true")
    parser.add_argument("--systems", type=int, default=32, help="of --drift, two or more")
    args = parser.parse_args()
    if args.drift:
        drift(args.systems)
        return
    states = [state for state in NIST for _ in range(args.replicas)]
    print(f"{ATOMS} atoms, {args.steps} steps of {DT} fs, {args.replicas} replicas")
    print(f"{'':24}{'':6}{'ours':>20}{'NIST':>20}{'sigmas':>9}")
    batch, kelvin = thermalized(states, max(args.steps // 10, 1))
    constant_volume(batch, kelvin, args.steps, args.replicas)
    constant_pressure(batch, kelvin, args.steps, args.replicas)


if __name__ == "__main__":
    main()
