"""Radial distribution functions of solid, liquid and gaseous argon."""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.analysis import radial_distribution_function
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import LennardJones


kelvin = np.array([40.0, 110.0, 300.0])
edges = (5.36, 5.98, 12.0)  # Å, of a cell of four atoms
names = ("solid", "liquid", "gas")
cells = [bulk("Ar", "fcc", a=a, cubic=True).repeat(4) for a in edges]

sink = HostMemory()
engine = NVTLangevin(
    LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.5),
    dt=4.0,
    temperature=kelvin,
    friction=0.01,
    n_steps=3200,
    hooks=[SnapshotHook(sink, frequency=80)],
)
engine.run(initialize_velocities(Batch.from_ase(cells), kelvin))
frames = sink.read().to_ase()

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for k, name in enumerate(names):
    later = frames[k::3][10:]
    r, g = radial_distribution_function(later, r_max=10.0, bins=200)
    density = len(cells[k]) / cells[k].get_volume()
    around = np.cumsum(4 * np.pi * density * r**2 * g * (r[1] - r[0]))
    left.plot(r, g, label=f"{name}, {kelvin[k]:.0f} K")
    right.plot(r, around)
left.set(xlabel="r (Å)", ylabel="g(r)")
left.legend(frameon=False)
right.axhline(12, color="black", ls=":")
right.set(xlabel="r (Å)", ylabel="atoms within r", xlim=(2, 7), ylim=(0, 30))
fig.savefig("phases.png", dpi=110)
