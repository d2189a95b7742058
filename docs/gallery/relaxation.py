"""Four metal clusters before and after a relaxation."""

import matplotlib.pyplot as plt
import numpy as np
from ase.cluster import Icosahedron
from ase.visualize.plot import plot_atoms

from alchemi_jax.dynamics import FIRE, ConvergenceHook
from alchemi_jax.models import EMT


clusters = [Icosahedron(metal, 3) for metal in ("Ni", "Cu", "Ag", "Au")]
for seed, atoms in enumerate(clusters):
    atoms.rattle(0.5, seed=seed)

stop = ConvergenceHook.from_fmax(0.01)
done = FIRE(EMT(), n_steps=1000, hooks=[stop]).run(clusters).to_host()

fig, rows = plt.subplots(2, 4, figsize=(7, 3.5), layout="constrained")
for row, structures in zip(rows, (clusters, done.to_ase()), strict=True):
    for ax, atoms in zip(row, structures, strict=True):
        plot_atoms(atoms, ax, rotation="10x,25y")
        ax.axis("off")
for k in range(4):
    fmax = np.linalg.norm(done[k].forces, axis=1).max()
    rows[0, k].set_title(f"{clusters[k].symbols[0]}, 55 atoms", fontsize=10)
    rows[1, k].set_title(
        f"{done.steps_taken[k]} steps\nfmax {fmax:.4f} eV/Å", fontsize=9
    )
fig.savefig("relaxation.png", dpi=110)
