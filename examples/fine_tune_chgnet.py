"""Fine-tuning CHGNet on twenty structures, with frozen embeddings.

`python examples/fine_tune_chgnet.py [epochs] [folder]`, some minutes on one core. The labels of twenty
rattled cells of copper, gold and their alloys are those of effective medium theory. They stand for
calculations of one's own: not better than what CHGNet was trained on, but different, so that it shows what
twenty structures change. Prints the errors before and after on ten cells that were not trained on, and what
has changed for materials that are not in the data. The model goes to the folder: `--model trained:FOLDER`.
"""

import sys

import equinox as eqx
import numpy as np
import optax
from ase.build import bulk

from alchemi_jax.models import EMT, CHGNet, evaluate, save
from alchemi_jax.training import Batches, Loss, Trainer
from alchemi_jax.training.hooks import EMAHook
from alchemi_jax.training.parameters import paths_of


#: What turns elements, distances and angles into features; energies of single atoms; magnetic moments.
FROZEN = (
    "embedding",
    "frequencies",
    "bond_frequencies",
    "angle_frequencies",
    "edge_features",
    "edge_weights",
    "bond_weights",
    "angle_features",
    "references",
    "moments",
)
#: Materials that are not in the data.
APART = {
    "Ag": bulk("Ag", "fcc", a=4.09),
    "Si": bulk("Si", "diamond", a=5.43),
    "MgO": bulk("MgO", "rocksalt", a=4.21),
    "NaCl": bulk("NaCl", "rocksalt", a=5.64),
}


def alloys(count, seed):
    """Cells of four atoms, doubled: Cu, Cu3Au, CuAu, CuAu3 and Au, of random size, strained and rattled."""
    rng = np.random.default_rng(seed)
    cells = []
    for k in range(count):
        gold = k % 5
        a = (3.61 + 0.4 * gold / 4) * rng.uniform(0.97, 1.05)
        atoms = bulk("Cu", "fcc", a=a, cubic=True)
        atoms.symbols[:gold] = "Au"
        atoms = atoms.repeat((2, 1, 1))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.12, atoms.positions.shape)
        cells.append(atoms)
    return cells


def with_references(model, structures):
    """The model with energies of elements fitted to the labels by least squares.

    The labels may have another zero of energy than the network.
    """
    found = evaluate(model, structures, stress=False)
    missing = np.array([a.get_potential_energy() for a in structures]) - np.asarray(found.energy)
    numbers = np.unique(np.concatenate([a.numbers for a in structures]))
    counts = np.array([[(a.numbers == z).sum() for z in numbers] for a in structures])
    change = np.linalg.lstsq(counts.astype(float), missing, rcond=None)[0]
    # The table begins with hydrogen.
    new = model.references.at[numbers - 1].add(change.astype(model.references.dtype))
    return eqx.tree_at(lambda m: m.references, model, new)


def mean_errors(found, structures):
    """Mean absolute errors: energy, meV per atom, and forces, meV/Å; `found` begins with these structures."""
    sizes = np.array([len(a) for a in structures])
    energies = np.array([a.get_potential_energy() for a in structures])
    forces = np.concatenate([a.get_forces() for a in structures])
    return (
        1000 * np.abs((found.energy[: len(sizes)] - energies) / sizes).mean(),
        1000 * np.abs(found.forces[: len(forces)] - forces).mean(),
    )


def make_trainer(model, steps):
    """A small rate that falls to zero, forces and energies, averaged parameters."""
    loss = Loss(energy=5.0, forces=1.0, delta={"energy": 0.01, "forces": 0.1})
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    return Trainer(model, loss, optimizer, hooks=[EMAHook(0.9)], frozen=FROZEN)


def fit(model, known, steps):
    """The trainer, and its state after so many steps of four structures."""
    data = Batches(known, max_systems=4, buckets=1)
    trainer = make_trainer(model, steps)
    return trainer, trainer.run(data, n_steps=steps)


def main(epochs=30, folder=None):
    labelled = evaluate(EMT(elements=("Cu", "Au")), alloys(30, seed=0)).to_ase()
    known, others = labelled[:20], labelled[20:]
    model = with_references(CHGNet.load(), known)
    trainer, state = fit(model, known, epochs * len(known) // 4)
    tuned = trainer.averaged(state)
    trained = sorted({path.split(".")[0] for path in paths_of(trainer.split()[0])})
    print(f"trained: {', '.join(trained)}; frozen: {', '.join(FROZEN)}")
    before, after = (evaluate(m, others + list(APART.values()), stress=False) for m in (model, tuned))
    for name, found in (("before", before), ("after", after)):
        energy, forces = mean_errors(found, others)
        print(f"{name}: energy {energy:.1f} meV/atom, forces {forces:.0f} meV/Å")
    change = 1000 * (after.energy - before.energy) / after.atoms_per_system
    for name, value in zip(APART, change[len(others) :], strict=True):
        print(f"{name}, which is not in the data, changed by {value:+.0f} meV/atom")
    if folder is not None:
        save(folder, tuned, about={"structures": len(known), "epochs": epochs})


if __name__ == "__main__":
    main(*(int(a) if n == 0 else a for n, a in enumerate(sys.argv[1:])))
