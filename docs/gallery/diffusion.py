"""Diffusion in liquid argon at five frictions of the thermostat."""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.analysis import mean_squared_displacement
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones


frictions = np.array([1e-3, 3e-3, 1e-2, 3e-2, 1e-1])  # 1/fs, one per system
crystal = bulk("Ar", "fcc", a=5.98, cubic=True).repeat(3)
batch = initialize_velocities(Batch.from_ase([crystal] * 5), 300.0)
model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=7.0)
seen = ObservableHook({"r": lambda ctx: ctx.batch.positions}, frequency=10)
common = {"model": model, "dt": 5.0, "temperature": 110.0}
melt = NVTLangevin(**common, friction=0.001, n_steps=1000)
measure = NVTLangevin(**common, friction=frictions, n_steps=3000, hooks=[seen])
(melt + measure).run(batch)
paths = seen.table["r"][:, :540].reshape(-1, 5, 108, 3)

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
time = 0.05 * np.arange(120)  # ps
diffusion = []
for k, friction in enumerate(frictions):
    msd = mean_squared_displacement(paths[:, k])[:120]
    left.loglog(time[1:], msd[1:], label=f"{friction:g}/fs")
    slope = np.polyfit(time[40:], msd[40:], 1)[0]  # Å²/ps
    diffusion.append(slope / 6)
left.set(xlabel="time (ps)", ylabel="mean squared displacement (Å²)")
left.legend(frameon=False, fontsize=8, title="friction")
right.semilogx(frictions, diffusion, "o-")
right.set(xlabel="friction (1/fs)", ylabel="diffusion constant (Å²/ps)")
right.set_ylim(0, None)
fig.savefig("diffusion.png", dpi=110)
