"""Diffusion in liquid argon at six frictions of the thermostat."""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.analysis import mean_squared_displacement
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities, sweep
from alchemi_jax.dynamics.hooks import ObservableHook
from alchemi_jax.models import LennardJones


liquid = bulk("Ar", "fcc", a=5.98, cubic=True).repeat(3)
batch = initialize_velocities(Batch.from_ase(liquid), 110.0)
seen = ObservableHook({"r": lambda ctx: ctx.batch.positions}, frequency=10)
engine = NVTLangevin(
    LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.0),
    dt=4.0,
    temperature=110.0,
    hooks=[seen],
)
frictions = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]  # 1/fs
_, states = sweep(
    engine, batch, friction=frictions, n_steps=6000, with_states=True
)
paths = states.records[0].rows["r"][:, 100:600, :108]  # after 4 ps

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
time = 0.04 * np.arange(250)  # ps
diffusion = []
for friction, path in zip(frictions, paths, strict=True):
    msd = mean_squared_displacement(path)[:250]
    left.loglog(time[1:], msd[1:], label=f"{friction:g}/fs")
    slope = np.polyfit(time[50:], msd[50:], 1)[0]  # Å²/ps
    diffusion.append(slope / 6)
left.set(xlabel="time (ps)", ylabel="mean squared displacement (Å²)")
left.legend(frameon=False, fontsize=8, title="friction")
right.semilogx(frictions, diffusion, "o-")
right.set(xlabel="friction (1/fs)", ylabel="diffusion constant (Å²/ps)")
right.set_ylim(0, None)
fig.savefig("diffusion.png", dpi=110)
