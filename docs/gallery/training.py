"""Losses of a training, and the forces of the trained network."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import EMT, evaluate
from alchemi_jax.training import Batches, Loss, Trainer, network_for
from alchemi_jax.training.hooks import ValidationHook


def copper(kelvin, seed):
    """Structures of runs with EMT, which gives the labels."""
    sizes = np.linspace(3.60, 3.70, len(kelvin))
    cells = [bulk("Cu", "fcc", a=a, cubic=True).repeat(2) for a in sizes]
    sink, key = HostMemory(), jax.random.key(seed)
    engine = NVTLangevin(
        EMT(elements=("Cu",)),
        dt=4.0,
        temperature=kelvin,
        friction=0.02,
        n_steps=600,
        hooks=[SnapshotHook(sink, frequency=20)],
    )
    engine.run(initialize_velocities(Batch.from_ase(cells), kelvin, key))
    return sink.read().to_ase()


data = Batches(copper(np.linspace(300.0, 1500.0, 8), 0))
others = copper(np.linspace(400.0, 1400.0, 8), 1)
validated = ValidationHook(Batches(others), every=50)
network = network_for(data, key=jax.random.key(0))
loss = Loss(energy=5.0, forces=1.0, delta={"energy": 0.01, "forces": 0.05})
rate = optax.cosine_decay_schedule(5e-3, 1500)
trainer = Trainer(network, loss, optax.adam(rate), hooks=[validated])
state = trainer.run(data, n_steps=1500)
found = evaluate(trainer.trained(state), others, stress=False).forces.ravel()
known = np.concatenate([atoms.get_forces().ravel() for atoms in others])

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
for part, label in (("loss", "loss"), ("forces", "of forces")):
    left.semilogy(
        [row["step"] for row in validated.table],
        [row[part] for row in validated.table],
        label=label,
    )
left.set(xlabel="step", ylabel="loss on other runs")
left.legend(frameon=False)
right.plot(known, found, ".", ms=1)
right.axline((0, 0), slope=1, color="black", lw=0.5)
error = 1000 * np.abs(found - known).mean()
right.set(xlabel="force by EMT (eV/Å)", ylabel="force by the network (eV/Å)")
right.set_title(f"mean absolute error {error:.0f} meV/Å", fontsize=10)
fig.savefig("training.png", dpi=110)
