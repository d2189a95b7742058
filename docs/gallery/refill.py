"""A batch that waiting systems keep full."""

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron

from alchemi_jax.dynamics import FIRE, ConvergenceHook, Sampler
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones
from alchemi_jax.observables import fmax


rng = np.random.default_rng(1)
sites = Icosahedron("Ar", 3, latticeconstant=5.3).positions
sites = sites[np.argsort(np.linalg.norm(sites - sites[0], axis=1))]
clusters = []
for n in rng.integers(7, 40, 72):
    atoms = Atoms(f"Ar{n}", sites[:n] + rng.normal(0, 0.4, (n, 3)))
    clusters.append(atoms)

in_batch = 12
seen = ObservableHook({"fmax": fmax})
engine = FIRE(
    LennardJones(epsilon=0.0104, sigma=3.4, cutoff=25.0),
    n_steps=1000,
    hooks=[ConvergenceHook.from_fmax(0.005), seen],
)
sampler = Sampler(clusters, max_systems=in_batch, refill_share=0.1)
done = engine.run(sampler=sampler).to_host()
active, system = seen.table["active"], seen.table["system_id"]  # [steps, rows]

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
colors = np.where(active, system % 20, np.nan).T
left.imshow(colors, aspect="auto", cmap="tab20", interpolation="nearest")
left.set(xlabel="step", ylabel="row of the batch")
right.plot(active.sum(axis=1), label="refilled")
fixed = []
for group in np.asarray(done.steps_taken).reshape(-1, in_batch):
    fixed += [(group > step).sum() for step in range(group.max())]
right.plot(fixed, lw=0.8, label="one batch after another")
right.set(xlabel="step", ylabel="systems that still move", ylim=(0, 14.5))
right.legend(frameon=False, ncols=2, fontsize=8, loc="upper center")
fig.savefig("refill.png", dpi=110)
