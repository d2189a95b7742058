"""Structures of the workloads: the same as the peers' scripts make, by the same seeds."""

import os
import time

import numpy as np
from ase import Atoms
from ase.build import bulk


#: Of all timings. The processor's is right on a machine that others use, too: BENCHMARKS_CLOCK=processor.
clock = time.process_time if os.environ.get("BENCHMARKS_CLOCK") == "processor" else time.perf_counter
EPSILON, SIGMA, CUTOFF, MASS = 0.0104, 3.40, 8.5, 39.948
#: sqrt(eV/amu) in Å/fs.
SPEED = 0.09822694788464063
BOLTZMANN = 8.617333262e-5


def _icosahedron() -> np.ndarray:
    """Corners of an icosahedron at distance one."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    corners += [(b, c, a) for a, b, c in corners[:4]] + [(c, a, b) for a, b, c in corners[:4]]
    return np.array(corners) / np.linalg.norm(corners[0])


def perturbed_clusters(n: int = 256) -> list[Atoms]:
    """W1: icosahedra of 13 argon atoms with noise of 0.25 Å."""
    shell = 0.96 * 2 ** (1 / 6) * SIGMA * np.vstack([np.zeros(3), _icosahedron()])
    noise = (np.random.default_rng(1000 + i).normal(0, 0.25, (13, 3)) for i in range(n))
    return [Atoms("Ar13", positions=shell + d) for d in noise]


def crystals(n: int = 32, cells: int = 4, kelvin: float = 30.0) -> tuple[list[Atoms], list[np.ndarray]]:
    """W2: rattled fcc crystals of 4 cells^3 argon atoms, and their velocities, Å/fs."""
    structures, velocities = [], []
    for i in range(n):
        rng = np.random.default_rng(2000 + i)
        atoms = bulk("Ar", "fcc", a=5.26, cubic=True).repeat(cells)
        atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
        v = rng.normal(size=atoms.positions.shape) * np.sqrt(BOLTZMANN * kelvin / MASS) * SPEED
        structures.append(atoms)
        velocities.append(v - v.mean(0))
    return structures, velocities


def large_crystal() -> tuple[list[Atoms], list[np.ndarray]]:
    """W3: one crystal of 4000 atoms at 40 K."""
    return crystals(1, 10, 40.0)


def assorted_clusters(n: int = 512) -> list[Atoms]:
    """W5: 7 to 55 atoms of a Mackay icosahedron, those nearest to its centre, with noise of 0.2 Å."""
    corners = _icosahedron()
    edges = [a + b for i, a in enumerate(corners) for b in corners[:i] if np.linalg.norm(a - b) < 1.2]
    sites = np.vstack([np.zeros(3), corners, 2 * corners, edges]) * 0.96 * 2 ** (1 / 6) * SIGMA
    sites = sites[np.argsort(np.linalg.norm(sites, axis=1), kind="stable")]
    out = []
    for i in range(n):
        rng = np.random.default_rng(5000 + i)
        size = int(rng.integers(7, 56))
        out.append(Atoms(f"Ar{size}", positions=sites[:size] + rng.normal(0, 0.2, (size, 3))))
    return out


def heated(atoms: Atoms, kelvin: float) -> tuple[list[Atoms], list[np.ndarray]]:
    """A structure, and velocities at a temperature, Å/fs, with the centre of mass at rest."""
    rng = np.random.default_rng(6000)
    masses = atoms.get_masses()[:, None]
    v = rng.normal(size=atoms.positions.shape) * np.sqrt(BOLTZMANN * kelvin / masses) * SPEED
    return [atoms], [v - (masses * v).sum(0) / masses.sum()]


def silicon(cells: int) -> Atoms:
    """A rattled crystal of diamond structure, 8 cells^3 atoms."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(cells)
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    return atoms


def copper(cells: int) -> Atoms:
    """A rattled fcc crystal of 4 cells^3 atoms."""
    atoms = bulk("Cu", "fcc", a=3.61, cubic=True).repeat(cells)
    atoms.positions += np.random.default_rng(1).normal(0, 0.05, atoms.positions.shape)
    return atoms
