"""Energy and heat capacity of a cluster that melts."""

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities, sweep
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones
from alchemi_jax.units import KB


sites = Icosahedron("Ar", 2, latticeconstant=5.3).positions
batch = Batch.from_ase([Atoms("Ar13", sites)] * 12)
seen = ObservableHook({"energy": lambda ctx: ctx.batch.energy}, frequency=20)
engine = NVTLangevin(
    LennardJones(epsilon=0.0104, sigma=3.4, cutoff=20.0),
    dt=8.0,
    temperature=10.0,
    friction=0.005,
    hooks=[seen],
)


def warm(engine, batch, key):
    return initialize_velocities(batch, 2 * engine.temperature, key)


kelvin = np.linspace(10.0, 43.0, 12)
_, states = sweep(
    engine,
    batch,
    temperature=kelvin,
    n_steps=10000,
    start=warm,
    with_states=True,
)
energy = states.records[0].rows["energy"][:, 100:500, :12]  # after 16 ps
capacity = energy.var(axis=(1, 2)) / (KB * kelvin) ** 2 / 13 + 1.5  # in k_B

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
left.plot(kelvin, energy.mean(axis=1), ".", color="0.7")
left.plot(kelvin, energy.mean(axis=(1, 2)), "o-", ms=4)
left.set(xlabel="temperature (K)", ylabel="mean potential energy (eV)")
right.plot(kelvin, capacity, "o-", ms=4, color="C3")
right.axhline(3 - 3 / 13, color="black", ls=":", label="harmonic")
right.set(xlabel="temperature (K)", ylabel="heat capacity per atom ($k_B$)")
right.legend(frameon=False)
fig.savefig("melting.png", dpi=110)
