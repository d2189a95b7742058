"""How the error of the total energy grows with the time step."""

import jax
import matplotlib.pyplot as plt
import numpy as np
from ase.cluster import Icosahedron

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones
from alchemi_jax.observables import kinetic_energy


jax.config.update("jax_enable_x64", True)
dt = np.geomspace(1.0, 16.0, 9)  # fs, one per system
cluster = Batch.from_ase(Icosahedron("Ar", 3, latticeconstant=5.3))
moving = initialize_velocities(cluster, 20.0).to_ase()
batch = Batch.from_ase(moving * len(dt))


def total_energy(ctx):
    return ctx.batch.energy + kinetic_energy(ctx.batch)


seen = ObservableHook({"total": total_energy})
model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=25.0)
NVE(model, dt=dt, n_steps=1000, hooks=[seen]).run(batch)
total = seen.table["total"][:, : len(dt)]  # without padding
error = 1000 * (total - total[0])  # meV
# Of the same time, the first picosecond.
spread = [error[: int(1000 / h), k].std() for k, h in enumerate(dt)]
exponent = np.polyfit(np.log(dt), np.log(spread), 1)[0]

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for k in (8, 6, 4):
    time = 1e-3 * dt[k] * np.arange(1000)
    left.plot(time, error[:, k], lw=0.8, label=f"{dt[k]:.0f} fs")
left.set(xlabel="time (ps)", ylabel="error of the total energy (meV)")
left.set(xlim=(0, 4), ylim=(-0.12, 0.17))
left.legend(frameon=False, title="time step", ncols=3, loc="upper center")
right.loglog(dt, spread, "o", label="in the first ps")
right.loglog(
    dt, spread[0] * (dt / dt[0]) ** 2, "k:", label="proportional to dt²"
)
right.set(xlabel="time step dt (fs)", ylabel="standard deviation (meV)")
right.set_title(f"fitted exponent {exponent:.2f}", fontsize=10)
right.legend(frameon=False)
fig.savefig("energy_conservation.png", dpi=110)
