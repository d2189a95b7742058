"""The chgnet package on torch: relaxations of `benchmarks.crystals`, as a table that the tests compare with.

In an environment with chgnet (0.4.2) and torch: `python -m benchmarks.chgnet_torch tests/data/FILE.json`.
Its relaxation is ASE's FIRE to 0.02 eV/Å; with a free cell through ASE's FrechetCellFilter.
"""

import json
import sys
import time
from pathlib import Path

import torch
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from chgnet.model.dynamics import CHGNetCalculator

from benchmarks.crystals import perturbed


FMAX, STEPS = 0.02, 1000


def main(path: Path) -> None:
    torch.set_num_threads(1)
    calculator = CHGNetCalculator(use_device="cpu")
    table = json.loads(path.read_text()) if path.exists() else {}
    for name, start in perturbed().items():
        row = table.setdefault(name, {"atoms": len(start), "formula": start.get_chemical_formula()})
        for kind in ("fixed", "free"):
            if kind in row:
                continue
            atoms = start.copy()
            atoms.calc = calculator
            began = time.perf_counter()
            first = atoms.get_potential_energy()
            optimizer = FIRE(FrechetCellFilter(atoms) if kind == "free" else atoms, logfile=None)
            done = optimizer.run(fmax=FMAX, steps=STEPS)
            row[kind] = {
                "energy_per_atom": float(atoms.get_potential_energy()) / len(atoms),
                "start_per_atom": float(first) / len(atoms),
                "volume": atoms.get_volume(),
                "steps": optimizer.nsteps,
                "converged": bool(done),
            }
            print(name, kind, row[kind], f"{time.perf_counter() - began:.0f} s", flush=True)
            path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
