"""Replicas that exchange their temperatures."""

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook, ReplicaExchangeHook
from alchemi_jax.models import LennardJones


kelvin = np.array([20.0, 23.0, 26.5, 30.5, 35.0, 40.0])
sites = Icosahedron("Ar", 2, latticeconstant=5.3).positions
batch = Batch.from_ase([Atoms("Ar13", sites)] * 6)
seen = ObservableHook(
    {
        "energy": lambda ctx: ctx.batch.energy,
        "kelvin": lambda ctx: ctx.batch.target_temperature,
    },
    frequency=25,
)
engine = NVTLangevin(
    LennardJones(epsilon=0.0104, sigma=3.4, cutoff=20.0),
    dt=5.0,
    temperature=kelvin,
    friction=0.005,
    n_steps=20000,
    hooks=[ReplicaExchangeHook(kelvin, every=200, seed=1), seen],
)
engine.run(initialize_velocities(batch, kelvin))
table = seen.table
exchanged, energy = table["kelvin"][:, :6], table["energy"][:, :6]

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for k in (5, 0):
    time = 5e-3 * table["step"]
    left.step(time, exchanged[:, k], label=f"replica {k}")
left.set(xlabel="time (ps)", ylabel="temperature of the replica (K)")
left.set_yticks(kelvin)
left.set_ylim(18, 45)
for t in kelvin:
    here = np.isclose(exchanged, t)
    right.hist(
        energy[here],
        bins=np.linspace(-0.47, -0.27, 41),
        density=True,
        histtype="step",
        label=f"{t:.1f} K",
    )
right.set(xlabel="potential energy (eV)", ylabel="density (1/eV)")
right.legend(frameon=False, fontsize=8)
left.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
fig.savefig("tempering.png", dpi=110)
