"""Twenty real materials on the command line, against relaxations by the chgnet package on torch.

`benchmarks/chgnet_torch.py` made the table, `benchmarks/crystals.py` makes the folder.
"""

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest

from alchemi_jax.models import chgnet_weights
from benchmarks.crystals import perturbed, write_folder


TABLE = json.loads((Path(__file__).parent / "data" / "chgnet_relaxed.json").read_text())
START = "from alchemi_jax.cli.main import start; import sys; sys.argv[0] = 'alchemi-jax'; sys.exit(start())"


#: In fixed cells the same energies are minimised, with fewer of their derivatives.
@pytest.mark.parametrize(
    ("kind", "half"),
    [("free", True), *(pytest.param(kind, False, marks=pytest.mark.long) for kind in ("free", "fixed"))],
)
def test_a_folder_of_real_crystals_relaxes_as_by_the_package(kind, half, tmp_path):
    """No model is named: all elements are known to CHGNet, and the first line says that it is taken."""
    try:
        chgnet_weights.keep()
    except OSError as e:
        pytest.skip(f"no weights: {e}")
    # The half has metals, semiconductors, oxides, a layer and the molecule.
    write_folder(tmp_path / "crystals", slice(1, None, 2) if half else slice(None))
    command = [sys.executable, "-c", START, "relax", "crystals", "--fmax", "0.02"]
    cell = [] if kind == "fixed" else ["--cell"]
    done = subprocess.run([*command, *cell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Model: chgnet:0.3.0, since none was given" in done.stdout.splitlines()[0]
    out = ase.io.read(tmp_path / "alchemi-relaxed" / "relaxed.extxyz", ":")
    assert (len(out), len(TABLE)) == (10 if half else 20, 20)
    by_formula = {atoms.get_chemical_formula(): name for name, atoms in perturbed().items()}
    assert len(by_formula) == 20
    for atoms in out:
        name = by_formula[atoms.get_chemical_formula()]
        energy = atoms.get_potential_energy() / len(atoms)
        assert abs(energy - TABLE[name][kind]["energy_per_atom"]) < 2e-3, name
        assert np.isfinite(atoms.get_magnetic_moments()).all()
