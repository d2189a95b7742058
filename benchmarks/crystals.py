"""Twenty real materials, perturbed a little: oxides, metals, semiconductors, a slab, a molecule in a box.

`python -m benchmarks.crystals FOLDER` writes one file per structure (POSCAR, CIF or extxyz), as the README's
second screen relaxes them. Lattice constants are experimental ones, rounded.
"""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule, mx2
from ase.io import write
from ase.spacegroup import crystal


def materials() -> dict[str, Atoms]:
    """Unperturbed structures by name."""
    slab = fcc111("Cu", (1, 1, 5), a=3.61, vacuum=7.5)
    slab.pbc = True
    water = molecule("H2O", vacuum=4.0)
    water.pbc = True
    sheet = mx2("MoS2", a=3.18, thickness=3.19, vacuum=8.0)
    sheet.pbc = True
    return {
        "Cu": bulk("Cu", a=3.61, cubic=True),
        "Al": bulk("Al", a=4.05),
        "Fe": bulk("Fe", a=2.87, cubic=True),
        "W": bulk("W", a=3.165),
        "Mg": bulk("Mg", a=3.21, c=5.21),
        "Ti": bulk("Ti", a=2.95, c=4.68),
        "Cu3Au": crystal(
            ["Au", "Cu"], [(0, 0, 0), (0, 0.5, 0.5)], spacegroup=221, cellpar=[3.75] * 3 + [90] * 3
        ),
        "Si": bulk("Si", a=5.43, cubic=True),
        "Ge": bulk("Ge", a=5.66),
        "GaAs": bulk("GaAs", "zincblende", a=5.65),
        "GaN": bulk("GaN", "wurtzite", a=3.19, c=5.19, u=0.377),
        "ZnO": bulk("ZnO", "wurtzite", a=3.25, c=5.21, u=0.382),
        "MgO": bulk("MgO", "rocksalt", a=4.21),
        "NaCl": bulk("NaCl", "rocksalt", a=5.64, cubic=True),
        "TiO2": crystal(
            ["Ti", "O"],
            [(0, 0, 0), (0.305, 0.305, 0)],
            spacegroup=136,
            cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
        ),
        "CeO2": bulk("CeO2", "fluorite", a=5.41),
        "SrTiO3": crystal(
            ["Sr", "Ti", "O"],
            [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
            spacegroup=221,
            cellpar=[3.905] * 3 + [90] * 3,
        ),
        "MoS2": sheet,
        "Cu-slab": slab,
        "H2O": water,
    }


def perturbed() -> dict[str, Atoms]:
    """The structures that are relaxed: cells strained by up to two percent, atoms moved by about 0.05 Å."""
    out = {}
    for i, (name, atoms) in enumerate(materials().items()):
        rng = np.random.default_rng(7000 + i)
        # An empty direction keeps its length.
        size = 0.0 if name in ("H2O", "Cu-slab", "MoS2") else 0.02
        strain = rng.uniform(-size, size, (3, 3))
        atoms = Atoms(atoms.numbers, cell=atoms.cell, pbc=atoms.pbc, positions=atoms.positions)
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        out[name] = atoms
    return out


#: Names of the files by format; the others are POSCARs.
_CIF, _EXTXYZ = ("TiO2", "SrTiO3", "NaCl"), ("Cu-slab", "H2O", "MoS2")


def write_folder(folder: Path, some: slice = slice(None)) -> list[Path]:
    """One file per structure, of all or of some of them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, atoms in list(perturbed().items())[some]:
        if name in _CIF:
            path, form = folder / f"{name}.cif", "cif"
        elif name in _EXTXYZ:
            path, form = folder / f"{name}.extxyz", "extxyz"
        else:
            path, form = folder / f"{name}.vasp", "vasp"
        write(path, atoms, format=form)
        paths.append(path)
    return paths


def rutile_cells(n: int = 32) -> list[Atoms]:
    """W6 and W7: rutile, four cells of six atoms, rattled by 0.05 Å."""
    cell = materials()["TiO2"].repeat((1, 2, 2))
    out = []
    for i in range(n):
        atoms = cell.copy()
        atoms.positions += np.random.default_rng(6000 + i).normal(0, 0.05, atoms.positions.shape)
        out.append(Atoms(atoms.numbers, cell=atoms.cell, pbc=True, positions=atoms.positions))
    return out


if __name__ == "__main__":
    written = write_folder(Path(sys.argv[1] if len(sys.argv) > 1 else "crystals"))
    print(f"{len(written)} structures in {written[0].parent}")
