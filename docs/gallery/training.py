"""Losses of a training, and the forces of the trained network."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from ase.build import bulk

from alchemi_jax.models import EMT, evaluate
from alchemi_jax.training import Batches, Loss, Trainer, network_for
from alchemi_jax.training.hooks import ValidationHook


def copper(n, seed):
    """Strained and rattled crystals, with energies and forces of EMT."""
    rng, crystals = np.random.default_rng(seed), []
    for a in rng.normal(3.62, 0.04, n):
        atoms = bulk("Cu", "fcc", a=a, cubic=True).repeat(2)
        atoms.rattle(rng.uniform(0.02, 0.12), rng=rng)
        crystals.append(atoms)
    return evaluate(EMT(elements=("Cu",)), crystals).to_ase()


data, others = Batches(copper(160, 0)), copper(40, 1)
validated = ValidationHook(Batches(others), every=20)
network = network_for(data, key=jax.random.key(0))
loss = Loss(energy=5.0, forces=1.0, delta={"energy": 0.01, "forces": 0.05})
rate = optax.cosine_decay_schedule(5e-3, 800)
trainer = Trainer(network, loss, optax.adam(rate), hooks=[validated])
state = trainer.run(data, n_steps=800)
found = evaluate(trainer.trained(state), others, stress=False).forces.ravel()
known = np.concatenate([atoms.get_forces().ravel() for atoms in others])

fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained")
steps = [row["step"] for row in validated.table]
for part in ("forces", "energy"):
    losses = [row[part] for row in validated.table]
    left.semilogy(steps, losses, label=part)
left.set(xlabel="step", ylabel="loss on other crystals")
left.legend(frameon=False, title="part")
right.plot(known, found, ".", ms=1)
right.axline((0, 0), slope=1, color="black", lw=0.5)
error = 1000 * np.abs(found - known).mean()
right.set(xlabel="force by EMT (eV/Å)", ylabel="force by the network (eV/Å)")
right.set_title(f"mean absolute error {error:.0f} meV/Å", fontsize=10)
fig.savefig("training.png", dpi=110)
