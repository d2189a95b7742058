"""Long runs against published values: the Lennard-Jones fluid near its triple point.

`python -m benchmarks.physics` samples argon-like fluids of 500 atoms and compares with the reference values
of NIST (Standard Reference Simulation Website, "LJ fluid properties", Metropolis Monte Carlo, 500 particles,
cutoff 3 sigma with long-range corrections): mean energy and pressure by NVTLangevin at their densities, and
the mean density by NPT at their pressure. Errors are of block means. `--drift` runs NVE on W2 for 10,000
steps instead and prints how far the energy went, in both precisions. `--solid` compares fcc crystals with van
der Hoef's equation of state. Errors of a time step fall as dt²: `--dt` of half and twice the `--steps` show
how large they are.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from numpy.polynomial.polynomial import polyder, polyval

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NPT, NVE, ConvergenceHook, NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import AbstractPair, LennardJones
from alchemi_jax.systems.observables import kinetic_energy, pressure, volume
from alchemi_jax.systems.segments import sum_by_system
from alchemi_jax.units import GPA, KB
from benchmarks import structures
from benchmarks.structures import EPSILON, SIGMA
from benchmarks.workloads import moving


#: T*, density*, U*/N with its error, p* with its error.
NIST = (
    (0.85, 0.776, -5.5121, 4.6e-4, 6.7714e-3, 1.8e-3),
    (0.85, 0.860, -6.0305, 2.4e-4, 1.2660, 1.4e-3),
)
#: fcc crystals: T*, density*, and the sum over five shears of d ln(modulus)/d ln(density), from harmonic
#: free energies of strained crystals.
SOLIDS = ((0.3, 1.02, 27.2), (0.5, 0.98, 30.6))
ATOMS, CUTOFF = 500, 3.0
MODEL = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF * SIGMA)
#: fs, for fluids and crystals and for the drift, unless `--dt` says otherwise.
DT, DT_DRIFT = 5.0, 4.0


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


def blocks(series: np.ndarray, n: int = 10) -> tuple[float, float]:
    """Mean over replicas [replicas, frames] and its standard error from n block means of each, all about one
    mean: how replicas differ counts."""
    means = np.array([[part.mean() for part in np.array_split(replica, n)] for replica in series])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size))


def row(label: str, name: str, found: tuple[float, float], value: float, error: float) -> None:
    """Prints ours, theirs, and the difference in standard errors of both."""
    ours, theirs = f"{found[0]:.6f} +- {found[1]:.6f}", f"{value:.6f} +- {error:.6f}"
    sigmas = (found[0] - value) / np.hypot(found[1], error)
    print(f"{label:24}{name:>6}{ours:>24}{theirs:>24}{sigmas:+9.1f}", flush=True)


def thermalized(states: list[tuple], steps: int, dt: float) -> tuple[Batch, np.ndarray]:
    """Fluids at the temperatures and densities of `states`, and the temperatures, K."""
    batch = Batch.from_ase([fluid(state[1], i) for i, state in enumerate(states)])
    batch = FIRE(model=MODEL, n_steps=200, hooks=[ConvergenceHook.from_fmax(0.5)]).run(batch)
    kelvin = np.array([state[0] for state in states]) * EPSILON / KB
    engine = NVTLangevin(model=MODEL, dt=dt, temperature=kelvin, friction=0.005, n_steps=steps)
    return engine.run(batch, key=jax.random.key(1)), kelvin


def constant_volume(batch: Batch, kelvin: np.ndarray, steps: int, replicas: int, dt: float) -> None:
    """Mean energy and pressure by NVTLangevin."""
    seen = ObservableHook({"e": lambda ctx: ctx.batch.energy, "p": pressure}, frequency=10, stress=True)
    engine = NVTLangevin(model=MODEL, dt=dt, temperature=kelvin, friction=0.005, n_steps=steps, hooks=[seen])
    engine.run(batch, key=jax.random.key(2))
    for k, (t, density, u, u_error, p, p_error) in enumerate(NIST):
        mine = slice(k * replicas, (k + 1) * replicas)
        more_u, more_p = tails(density)
        label = f"NVT T*={t} rho*={density}"
        energies = seen.table["e"][:, mine].T / ATOMS / EPSILON + more_u
        row(label, "U*", blocks(energies), u, u_error)
        row(label, "p*", blocks(seen.table["p"][:, mine].T * GPA * SIGMA**3 / EPSILON + more_p), p, p_error)


def constant_pressure(batch: Batch, kelvin: np.ndarray, steps: int, replicas: int, dt: float) -> None:
    """Mean density by NPT; the pressure beyond the cutoff is that of the reference's density."""
    wanted = np.array([p - tails(density)[1] for _, density, _, _, p, _ in NIST for _ in range(replicas)])
    settings: dict[str, Any] = {"model": MODEL, "dt": dt, "temperature": kelvin}
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


def at_rest(density: Any) -> tuple[Any, Any]:
    """U*/N and p* of the fcc lattice whose atoms rest: sums over the lattice."""
    a, b = -14.4539210, 6.0659401
    return a * density**2 + b * density**4, 2 * a * density**3 + 4 * b * density**5


def published() -> dict[str, np.ndarray]:
    """Two fits c[n, m] to Monte Carlo of the crystal of very many atoms, less ideal gas and a constant:

    A/NkT = U_rest/NkT - 3/2 ln T* + sum c[n, m] rho*^n T*^m

    M. A. van der Hoef, J. Chem. Phys. 113, 8142 (2000); H. Adidharma and S. P. Tan, 145, 014503 (2016).
    """
    hoef, tan = np.zeros((5, 5)), np.zeros((6, 5))
    hoef[1:, 0] = np.array([69.833875, -132.86963, 97.438593, -25.848057]) / [1, 2, 3, 4]
    anharmonic = [
        [-8.2151768, 12.070686, -6.6594615, 1.3211582],
        [13.404069, -20.632066, 11.564825, -2.3064801],
        [-5.5481261, 8.8465978, -5.0258631, 1.0070066],
    ]
    hoef[:3, 1:] = -np.array(anharmonic) / [1, 2, 3, 4]
    tan[1:, 0] = [107.235706, -124.131009, 77.69834533, -24.920071, 3.2250032]
    tan[:5, 1:] = [
        [36.33808682, -41.137808, 25.74698103, -7.807991646],
        [-107.1699988, 128.050431, -82.46948719, 25.42569589],
        [119.9321063, -149.8142253, 98.98941549, -30.98224644],
        [-60.0831842, 77.97346577, -52.73174376, 16.73649778],
        [11.33640974, -15.21781104, 10.51355501, -3.381006354],
    ]
    return {"van der Hoef": hoef, "Adidharma, Tan": tan}


def solid(fit: np.ndarray, t: float, density: Any) -> tuple[Any, Any]:
    """U*/N and p* by a published fit, of very many atoms."""
    u, p = at_rest(density)
    u = u + 1.5 * t - t**2 * polyval(density, polyval(t, polyder(fit, axis=1).T))
    return u, p + density * t + density**2 * t * polyval(density, polyval(t, polyder(fit, axis=0).T))


def finite(fit: np.ndarray, t: float, density: Any) -> tuple[Any, Any]:
    """The same of ATOMS atoms, without their centre of mass: one atom's share of all motion."""
    rest = at_rest(density)
    return tuple(x - (x - y) / ATOMS for x, y in zip(solid(fit, t, density), rest, strict=True))


def mean_density(fit: np.ndarray, t: float, target: float, shears: float = 0.0) -> float:
    """Mean of N/V over exp(-(A + target V)/kT) dV, of ATOMS atoms whose centre of mass rests.

    Five shears of a flexible cell add kT/2 times the logarithms of their moduli to A, and so a pressure of
    `shears` rho kT/2N: the sum of the moduli's logarithmic derivatives by density.
    """
    v = np.linspace(0.93, 1.1, 4001)
    excess = finite(fit, t, 1 / v)[1] + shears * t / v / (2 * ATOMS) - target
    a = -np.concatenate([[0], np.cumsum((excess[1:] + excess[:-1]) / 2 * np.diff(v))])
    weight = np.exp(-ATOMS * (a - a.min()) / t)
    return float((weight / v).sum() / weight.sum())


def beyond(batch: Batch, near: LennardJones, density: float, far: float = 9.0) -> tuple[float, float]:
    """What lies beyond the cutoff of `near`, of which a lattice has not quite what a fluid has: U*/N and p*.

    To `far` it is what these systems have, farther what a fluid has. It hardly depends on the motion.
    """
    found = []
    for model in (dataclasses.replace(near, cutoff=far * SIGMA), near):
        # A step of next to no time: for energies and stresses of one model and the other.
        out = NVE(model=model, dt=1e-6).run(batch, 1).take()
        virial = -np.trace(out.stress, axis1=1, axis2=2) / 3
        found.append((out.energy.mean() / ATOMS / EPSILON, virial.mean() * SIGMA**3 / EPSILON))
    u, p = (a - b + c for a, b, c in zip(*found, tails(density, far), strict=True))
    return float(u), float(p)


def controlled(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """x [frames, replicas] less what it shares with `known`, of which the true mean is zero."""
    slope = (known * (x - x.mean())).mean() / (known * known).mean()
    return x - slope * known


def compared(label: str, name: str, found: tuple[float, float], theirs: list[float]) -> None:
    """Prints ours and both equations', and the difference from their mean; half of theirs is an error."""
    middle, half = np.mean(theirs), np.ptp(theirs) / 2
    text = "".join(f"{x:16.6f}" for x in theirs)
    sigmas = (found[0] - middle) / np.hypot(found[1], half)
    print(f"{label:34}{name:>6}{found[0]:12.6f} +- {found[1]:.6f}{text}{sigmas:+9.1f}", flush=True)


def crystals(steps: int, replicas: int, dt: float) -> None:
    """Mean energy and pressure of fcc crystals by NVTLangevin, and mean density by NPT."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=4.5 * SIGMA)
    states = [state for state in SOLIDS for _ in range(replicas)]
    batch = Batch.from_ase(
        [bulk("Ar", "fcc", a=(4 / state[1]) ** (1 / 3) * SIGMA, cubic=True).repeat(5) for state in states]
    )
    kelvin = np.array([state[0] for state in states]) * EPSILON / KB
    sites = batch.positions
    batch = initialize_velocities(batch, 2 * kelvin, jax.random.key(11))
    settings: dict[str, Any] = {"model": model, "dt": dt, "temperature": kelvin}
    langevin = NVTLangevin(**settings, friction=0.005)
    seen = {
        "e": lambda ctx: ctx.batch.energy,
        "p": lambda ctx: -jnp.trace(ctx.batch.stress, axis1=1, axis2=2) / 3,
        "w": lambda ctx: sum_by_system(
            ctx.batch, jnp.sum(ctx.batch.forces * (ctx.batch.positions - sites), axis=1)
        ),
    }
    hook = ObservableHook(seen, frequency=10, stress=True)
    settled = max(steps // 10, 1)
    batch = langevin.run(batch, settled, key=jax.random.key(12))
    batch = dataclasses.replace(langevin, hooks=[hook]).run(batch, steps, key=jax.random.key(13))
    fits = published()
    own = [slice(k * replicas, (k + 1) * replicas) for k in range(len(SOLIDS))]
    tail, targets = [], []
    for mine, (t, density, _) in zip(own, SOLIDS, strict=True):
        more = beyond(batch.take(np.arange(len(states))[mine]), model, density)
        tail.append(more)
        targets.append(solid(fits["van der Hoef"], t, density)[1])
        label = f"NVT T*={t} rho*={density}"
        e, p, w = (hook.table[name][:, mine].astype(float) for name in "epw")
        # The mean of sum F (r - site) is -3 (N - 1) kT whatever the potential is, and most of the noise of
        # energy and pressure is its.
        w = w / EPSILON + 3 * (ATOMS - 1) * t
        mean, error = blocks((t - w / (3 * (ATOMS - 1))).T)
        print(f"{label:34}{'T*F':>6}{mean:12.6f} +- {error:.6f}")
        found = blocks((controlled(e / EPSILON, w) / ATOMS + more[0]).T)
        theirs = [finite(fit, t, density) for fit in fits.values()]
        compared(label, "U*", found, [x[0] for x in theirs])
        found = blocks((controlled(p * SIGMA**3 / EPSILON, w) + density * t + more[1]).T)
        # Here the centre of mass moves.
        compared(label, "p*", found, [x[1] + density * t / ATOMS for x in theirs])
    inside = np.repeat([p - more[1] for p, more in zip(targets, tail, strict=True)], replicas)
    settings |= {"pressure": inside * EPSILON / SIGMA**3 / GPA, "barostat_time": 500.0}
    for cell in ("isotropic", "flexible"):
        volumes = ObservableHook({"v": volume}, frequency=10)
        engine = NPT(**settings, cell=cell)
        start = initialize_velocities(batch, kelvin, jax.random.key(14))
        dataclasses.replace(engine, hooks=[volumes]).run(engine.run(start, settled), steps)
        for mine, target, (t, _, shears) in zip(own, targets, SOLIDS, strict=True):
            found = blocks(ATOMS * SIGMA**3 / volumes.table["v"][:, mine].T.astype(float), 4)
            more = shears if cell == "flexible" else 0.0
            theirs = [mean_density(fit, t, target, more) for fit in fits.values()]
            compared(f"NPT {cell} T*={t} p*={target:.4f}", "rho*", found, theirs)


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


def drift(systems: int = 32, steps: int = 10_000, dt: float = DT_DRIFT) -> None:
    """The total energy of W2 in NVE, eV an atom: slope over the run, and how it fluctuates."""
    for dtype in ("float32", "float64"):
        jax.config.update("jax_enable_x64", dtype == "float64")
        batch = moving(structures.crystals(systems), dtype)
        total = ObservableHook({"e": lambda ctx: ctx.batch.energy, "k": kinetic_energy}, frequency=50)
        NVE(model=Switched(), dt=dt, n_steps=steps, hooks=[total]).run(batch)
        energy = (total.table["e"].astype(float) + total.table["k"]) / 256
        time = total.table["step"] * dt * 1e-6
        slopes = np.polyfit(time, energy, 1)[0]
        rest = (energy - energy.mean(0)).std()
        error = slopes.std(ddof=1) / np.sqrt(systems)
        print(
            f"{dtype}: drift {slopes.mean():+.2e} +- {error:.1e} eV/atom/ns over "
            f"{steps} steps of {dt:g} fs, {systems} systems; fluctuation {rest:.1e} eV/atom, kinetic energy "
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
    parser.add_argument("--dt", type=float, help=f"fs, {DT} by default, {DT_DRIFT} of --drift")
    args = parser.parse_args()
    if args.drift:
        drift(args.systems, dt=DT_DRIFT if args.dt is None else args.dt)
        return
    if args.steps < 100:
        parser.error("--steps must be 100 or more: every tenth is a sample, and errors are of ten blocks.")
    dt = DT if args.dt is None else args.dt
    print(f"{ATOMS} atoms, {args.steps} steps of {dt:g} fs, {args.replicas} replicas")
    if args.solid:
        print(f"{'':34}{'':6}{'ours':>24}{'van der Hoef':>16}{'Adidharma, Tan':>16}{'sigmas':>9}")
        crystals(args.steps, args.replicas, dt)
        return
    states = [state for state in NIST for _ in range(args.replicas)]
    print(f"{'':24}{'':6}{'ours':>24}{'NIST':>24}{'sigmas':>9}")
    batch, kelvin = thermalized(states, max(args.steps // 10, 1), dt)
    constant_volume(batch, kelvin, args.steps, args.replicas, dt)
    constant_pressure(batch, kelvin, args.steps, args.replicas, dt)


if __name__ == "__main__":
    main()
