"""How fast three optimizers relax the same batch."""

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, FIRE2, LBFGS, ConvergenceHook
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import EMT
from alchemi_jax.observables import fmax


rng = np.random.default_rng(0)
sites = Icosahedron("Cu", 3).positions
sites = sites[np.argsort(np.linalg.norm(sites - sites[0], axis=1))]
clusters = []
for n in rng.integers(7, 30, 48):
    atoms = Atoms(f"Cu{n}", sites[:n] + rng.normal(0, 0.3, (n, 3)))
    clusters.append(atoms)
batch = Batch.from_ase(clusters)
model = EMT(elements=("Cu",))

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for kind in (FIRE, FIRE2, LBFGS):
    seen = ObservableHook({"fmax": fmax})
    hooks = [ConvergenceHook.from_fmax(0.01), seen]
    done = kind(model, n_steps=600, hooks=hooks).run(batch).to_host()
    steps = [0, *np.sort(done.steps_taken)]
    right.step(steps, 1 - np.arange(49) / 48, where="post", label=kind.__name__)
    if kind is FIRE:
        for k in range(48):
            rows = seen.table["active"][:, k]
            left.semilogy(seen.table["fmax"][rows, k], lw=0.6)
left.axhline(0.01, color="black", ls=":")
left.set(xlabel="step of FIRE", ylabel="largest force (eV/Å)")
right.set(xlabel="step", ylabel="share of clusters still relaxing")
right.legend(frameon=False)
fig.savefig("optimizers.png", dpi=110)
