"""Active learning: a committee runs dynamics, stops where it is not sure, and learns from what stopped it.

`python examples/active_learning.py [rounds] [steps]`, about two minutes on one core. The truth is effective
medium theory of copper. The first data are crystals whose atoms are moved by 0.1 Å; the dynamics is at
1200 K, where the networks have seen nothing. In each round eight systems run with the committee until the
forces of its members differ by more than a limit. Those that stopped are labelled by the truth and join the
data, and the members train on from their present parameters. Prints for each round how many systems stopped
and after how many steps, and the error of the forces where the runs ended; ends when none has stopped.
"""

import sys

import jax
import numpy as np
import optax
from ase.build import bulk

from alchemi_jax import Batch, Outcome
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import GuardHook
from alchemi_jax.models import EMT, CommitteeModel, evaluate
from alchemi_jax.segments import max_by_system
from alchemi_jax.training import Batches, Loss, Trainer, network_for


TRUTH = EMT(elements=("Cu",))
CRYSTAL = bulk("Cu", "fcc", a=3.66, cubic=True).repeat(2)
#: Runs of a round, and members of the committee.
SYSTEMS, MEMBERS = 8, 3
#: Å, how far the atoms of the first data are moved, the standard deviation.
RATTLE = 0.1
#: eV/Å, the largest spread of the force on an atom with which a system goes on.
LIMIT = 0.4
#: The same for all, so that a step compiles once.
LOSS = Loss(energy=5.0, forces=1.0, delta={"energy": 0.01, "forces": 0.05})


def unsure(batch):
    """Whether the committee is uncertain about a system."""
    return max_by_system(batch, batch["forces_spread"], 0) > LIMIT


def label(structures):
    """The structures, at most SYSTEMS, with energies and forces of the truth."""
    # Room for all systems: one shape, however many there are.
    batch = Batch.from_ase(structures, system_capacity=SYSTEMS, atom_capacity=SYSTEMS * len(CRYSTAL))
    return evaluate(TRUTH, batch, stress=False).to_ase()


def rattled(seed):
    """Crystals whose atoms are moved at random, labelled."""
    crystals = [CRYSTAL.copy() for _ in range(SYSTEMS)]
    for k, atoms in enumerate(crystals):
        atoms.rattle(RATTLE, seed=SYSTEMS * seed + k)
    return label(crystals)


def train(members, structures, n_steps):
    """The members after so many steps, each with an order of its own."""
    data = Batches(structures)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, n_steps))
    trained = []
    for seed, member in enumerate(members):
        trainer = Trainer(member, LOSS, optimizer)
        trained.append(trainer.trained(trainer.run(data, n_steps=n_steps, key=jax.random.key(seed))))
    return trained


def explore(committee, n_steps, seed):
    """The ends of runs at 1200 K with the committee: structures, and those that stopped."""
    batch = initialize_velocities(Batch.from_ase([CRYSTAL] * SYSTEMS), 2400.0, jax.random.key(seed))
    engine = NVTLangevin(
        committee,
        dt=4.0,
        temperature=1200.0,
        friction=0.02,
        n_steps=n_steps,
        hooks=[GuardHook(unsure, "the committee is not sure")],
    )
    out = engine.run(batch, key=jax.random.key(seed)).to_host()
    return out, np.asarray(out.outcome) == Outcome.STOPPED


def main(rounds=3, md_steps=500, train_steps=800):
    """A row for each round: structures known, systems stopped, their mean steps, error of forces (meV/Å)."""
    known = [atoms for seed in range(3) for atoms in rattled(seed)]
    first = Batches(known)
    members = [network_for(first, key=jax.random.key(seed)) for seed in range(MEMBERS)]
    table = []
    for k in range(rounds + 1):
        members = train(members, known, train_steps)
        ends, stopped = explore(CommitteeModel.of(members), md_steps, seed=k)
        labelled = label(ends.to_ase())
        error = np.abs(ends.forces - np.concatenate([a.get_forces() for a in labelled])).mean()
        table.append((len(known), int(stopped.sum()), float(ends.steps_taken.mean()), 1000 * float(error)))
        size, count, steps, error = table[-1]
        print(f"{size} structures known: {count} of {SYSTEMS} systems stopped, {steps:.0f} steps", end="; ")
        print(f"error of the forces there {error:.0f} meV/Å", flush=True)
        if not stopped.any():
            break
        known = known + [atoms for atoms, at in zip(labelled, stopped, strict=True) if at]
    return table


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
