"""Equations of state of seven metals."""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import GPa

from alchemi_jax.models import EMT, evaluate


metals = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
strains = np.linspace(0.94, 1.06, 13)
crystals = []
for metal in metals:
    atoms = bulk(metal, "fcc", cubic=True)
    for strain in strains:
        crystals.append(atoms.copy())
        crystals[-1].set_cell(strain * atoms.cell, scale_atoms=True)
energies = np.asarray(evaluate(EMT(), crystals).energy) / 4
volumes = np.array([atoms.get_volume() / 4 for atoms in crystals])

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for k, metal in enumerate(metals):
    rows = slice(13 * k, 13 * k + 13)
    state = EquationOfState(volumes[rows], energies[rows], eos="birchmurnaghan")
    v0, e0, modulus = state.fit()
    left.plot(volumes[rows], energies[rows] - e0, "o-", ms=3, label=metal)
    right.plot((4 * v0) ** (1 / 3), modulus / GPa, "o")
    right.annotate(
        metal,
        ((4 * v0) ** (1 / 3), modulus / GPa),
        (5, 4),
        textcoords="offset points",
    )
left.set(xlabel="volume (Å³/atom)", ylabel="energy above minimum (eV/atom)")
left.legend(frameon=False, fontsize=8)
right.set(xlabel="lattice constant (Å)", ylabel="bulk modulus (GPa)")
right.margins(0.12)
fig.savefig("equation_of_state.png", dpi=110)
