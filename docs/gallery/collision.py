"""A copper cluster hits a gold cluster: an animation."""

import matplotlib.pyplot as plt
import numpy as np
from ase.cluster import Icosahedron
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.units import fs
from matplotlib.animation import FuncAnimation, PillowWriter

from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import EMT


gold = Icosahedron("Au", 3, latticeconstant=3.84)
copper = Icosahedron("Cu", 3, latticeconstant=3.47)
gold.translate([-8, -1, 0] - gold.positions.mean(axis=0))
copper.translate([8, 1, 0] - copper.positions.mean(axis=0))
gold.set_velocities([0.0015 / fs, 0, 0])  # 0.0015 Å/fs = 150 m/s
copper.set_velocities([-0.00465 / fs, 0, 0])

sink, every = HostMemory(), 75
hooks = [SnapshotHook(sink, frequency=every)]
NVE(EMT(), dt=2.0, n_steps=3000, hooks=hooks).run(gold + copper)
frames = sink.read().to_ase()
time = 2e-3 * every * np.arange(len(frames))  # ps
kinetic = np.array([atoms.get_kinetic_energy() for atoms in frames])

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5))
fig.subplots_adjust(left=0.01, right=0.98, bottom=0.15, top=0.96, wspace=0.22)
left.set(xlim=(-15, 15), ylim=(-15, 15), aspect="equal")
left.axis("off")
points_per_angstrom = 72 * 7 * left.get_position().width / 30
size = (2 * points_per_angstrom * covalent_radii[frames[0].numbers]) ** 2
balls = left.scatter(*np.zeros((2, 110)), edgecolors="0.2", linewidths=0.5)
right.plot(time, kinetic, color="C3")
right.set(xlabel="time (ps)", ylabel="kinetic energy (eV)")
(now,) = right.plot([], [], "o", color="C3")


def draw(k):
    order = np.argsort(frames[k].positions[:, 2])  # far atoms first
    balls.set_offsets(frames[k].positions[order, :2])
    balls.set_sizes(size[order])
    balls.set_facecolors(jmol_colors[frames[k].numbers[order]])
    now.set_data(time[k : k + 1], kinetic[k : k + 1])


animation = FuncAnimation(fig, draw, len(frames))
animation.save("collision.gif", PillowWriter(fps=10), dpi=75)
