"""Makes the sample set: clusters cut from icosahedra, crystals with rattled atoms and vacancies.

Run as `python -m alchemi_jax.samples.make [folder]`.
"""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.cluster import Icosahedron
from ase.io import write


#: Lattice constants of the fcc crystals, Å.
LATTICE = {"Ne": 4.46, "Ar": 5.31, "Kr": 5.65, "Xe": 6.13}
CLUSTER_SIZES = (7, 13, 38, 55)
CRYSTALS = {"Ne": 2, "Ar": 4, "Kr": 2, "Xe": 3}


def cluster(symbol: str, n: int, rng: np.random.Generator) -> Atoms:
    """The n atoms of an icosahedron of 147 that are next to a point near its centre, rattled."""
    atoms = Icosahedron(symbol, 4, latticeconstant=LATTICE[symbol])
    near = np.linalg.norm(atoms.positions - rng.normal(0, 0.1, 3), axis=1)
    positions = atoms.positions[np.argsort(near)[:n]]
    positions = positions - positions.mean(axis=0)
    return Atoms([symbol] * n, positions=positions + rng.normal(0, 0.05 * LATTICE[symbol], (n, 3)))


def crystal(symbol: str, repeat: int, rng: np.random.Generator) -> Atoms:
    """An fcc crystal of 4 repeat^3 atoms, rattled."""
    atoms = bulk(symbol, "fcc", a=LATTICE[symbol], cubic=True).repeat(repeat)
    atoms.positions += rng.normal(0, 0.03 * LATTICE[symbol], atoms.positions.shape)
    return atoms


def mixed(atoms: Atoms, symbols: tuple[str, str], rng: np.random.Generator) -> Atoms:
    """A third of the atoms, drawn at random, of the second element."""
    other = rng.choice(len(atoms), len(atoms) // 3, replace=False)
    numbers = np.array([symbols[0]] * len(atoms), dtype=object)
    numbers[other] = symbols[1]
    atoms.set_chemical_symbols(list(numbers))
    return atoms


def sample_set() -> dict[str, list[Atoms]]:
    """The structures of each file, the same at every call."""
    rng = np.random.default_rng(2026)
    clusters = [cluster(symbol, n, rng) for symbol in LATTICE for n in CLUSTER_SIZES]
    crystals = [crystal(symbol, repeat, rng) for symbol, repeat in CRYSTALS.items()]
    vacancies = []
    for symbol in LATTICE:
        atoms = crystal(symbol, 2, rng)
        del atoms[rng.choice(len(atoms), 2, replace=False).tolist()]
        vacancies.append(atoms)
    pairs = [("Ar", "Kr"), ("Kr", "Ar"), ("Kr", "Xe"), ("Ne", "Ar"), ("Xe", "Kr"), ("Ar", "Xe")]
    mixtures = [
        mixed(cluster(pair[0], n, rng), pair, rng)
        for pair, n in zip(pairs, (19, 13, 38, 55, 7, 26), strict=True)
    ]
    mixtures += [mixed(crystal(pair[0], 2, rng), pair, rng) for pair in pairs[:3]]
    return {"clusters": clusters, "crystals": crystals + vacancies, "mixtures": mixtures}


def main(folder: Path) -> None:
    """Writes one file a family."""
    for name, structures in sample_set().items():
        write(folder / f"{name}.extxyz", structures, format="extxyz")
        print(f"{folder / name}.extxyz: {len(structures)} structures")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)


__all__ = ["CLUSTER_SIZES", "CRYSTALS", "LATTICE", "cluster", "crystal", "main", "mixed", "sample_set"]
