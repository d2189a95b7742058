"""Long runs against published values: the Lennard-Jones fluid near its triple point.

`python -m benchmarks.physics` samples argon-like fluids of 500 atoms and compares with the reference values
of NIST (Standard Reference Simulation Website, "LJ fluid properties", Metropolis Monte Carlo, 500 particles,
cutoff 3 sigma with long-range corrections): mean energy and pressure by NVTLangevin at their densities, and
the mean density by NPT at their pressure. Errors are of block means. `--drift` runs NVE on W2 for 10,000
steps instead and prints how far the energy went, in both precisions. `--solid` compares fcc crystals with van
der Hoef's equation of state.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk

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
#: fcc crystals: T*, density*.
SOLIDS = ((0.3, 1.02), (0.5, 0.98))
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


def tails(density: float, cutoff: float = CUTOFF) -> tuple[float, float]:
    """What lies beyond the cutoff in a uniform fluid: U*/N and p*."""
    s3 = cutoff**-3
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


#: van der Hoef's fit of the free energy: of the fcc lattice at rest, of the densities and temperatures.
REST = (-14.45392093, 6.065940096)
HARMONIC = (69.833875, -132.86963, 97.438593, -25.848057)
ANHARMONIC = (
    (-8.2151768, 12.070686, -6.6594615, 1.3211582),
    (13.404069, -20.632066, 11.564825, -2.3064801),
    (-5.5481261, 8.8465978, -5.0258631, 1.0070066),
)


def solid(t: float, density: float) -> tuple[float, float]:
    """U*/N and p* of the fcc crystal of very many atoms, from

    A/NkT = U_rest/NkT - 3/2 ln T* - sum a_nm rho^n T^(m-1)/(m-1) + sum b_n rho^(n+1)/(n+1) + constant

    less the ideal gas: M. A. van der Hoef, J. Chem. Phys. 113, 8142 (2000), n = 0 ..., m = 2 ... 5.
    """
    u = REST[0] * density**2 + REST[1] * density**4 + 1.5 * t
    slope = 1 / density + (2 * REST[0] * density + 4 * REST[1] * density**3) / t
    slope += sum(b * density**n for n, b in enumerate(HARMONIC))
    for n, row in enumerate(ANHARMONIC):
        for m, a in enumerate(row, start=2):
            u += a * density**n * t**m
            slope -= n * a * density ** max(n - 1, 0) * t ** (m - 1) / (m - 1)
    return u, density**2 * t * slope


def crystals(steps: int, replicas: int) -> None:
    """Mean energy and pressure of fcc crystals by NVTLangevin, and mean density by NPT."""
    cutoff = 4.5
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=cutoff * SIGMA)
    states = [state for state in SOLIDS for _ in range(replicas)]
    batch = Batch.from_ase(
        [bulk("Ar", "fcc", a=(4 / density) ** (1 / 3) * SIGMA, cubic=True).repeat(5) for _, density in states]
    )
    kelvin = np.array([t for t, _ in states]) * EPSILON / KB
    batch = initialize_velocities(batch, 2 * kelvin, jax.random.key(11))
    settings: dict[str, Any] = {"model": model, "dt": DT, "temperature": kelvin}
    settled = max(steps // 50, 1)
    seen = ObservableHook({"e": lambda ctx: ctx.batch.energy, "p": pressure}, frequency=10, stress=True)
    engine = NVTLangevin(**settings, friction=0.005, n_steps=steps, hooks=[seen])
    out = engine.run(batch, key=jax.random.key(12))
    wanted = np.repeat([solid(*state)[1] - tails(state[1], cutoff)[1] for state in SOLIDS], replicas)
    settings |= {"pressure": wanted * EPSILON / SIGMA**3 / GPA, "barostat_time": 500.0, "n_steps": steps}
    volumes = ObservableHook({"v": volume}, frequency=10)
    start = initialize_velocities(out, kelvin, jax.random.key(13))
    NPT(**settings, hooks=[volumes], cell="flexible").run(start)
    for k, (t, density) in enumerate(SOLIDS):
        mine = slice(k * replicas, (k + 1) * replicas)
        more_u, more_p = tails(density, cutoff)
        # In N atoms, of which one's worth of motion is the centre of mass's, motion adds less by 1/N.
        at_rest = REST[0] * density**2 + REST[1] * density**4
        p_rest = 2 * REST[0] * density**3 + 4 * REST[1] * density**5
        u, p = (x - (x - rest) / ATOMS for x, rest in zip(solid(t, density), (at_rest, p_rest), strict=True))
        label = f"NVT fcc T*={t} rho*={density}"
        energies = seen.table["e"][settled:, mine].T / ATOMS / EPSILON + more_u
        # A lattice and a uniform fluid differ beyond the cutoff by about this much, less what motion smears.
        row(label, "U*", blocks(energies, 5), u, 0.001)
        found = blocks(seen.table["p"][settled:, mine].T * GPA * SIGMA**3 / EPSILON + more_p, 5)
        row(label, "p*", found, p + density * t / ATOMS, 0.002)
        found = blocks(ATOMS * SIGMA**3 / volumes.table["v"][settled:, mine].T, 5)
        row(f"NPT fcc T*={t} p*={solid(t, density)[1]:.3f}", "rho*", found, density, 0.0001)


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
    parser.add_argument("--solid", action="store_true", help="fcc crystals instead of fluids")
    args = parser.parse_args()
    if args.solid:
        print(f"{'':24}{'':6}{'ours':>20}{'van der Hoef':>20}{'sigmas':>9}")
        crystals(args.steps, args.replicas)
        return
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
