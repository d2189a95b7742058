"""A first potential: small invariant networks on copper, from files with energies and forces.

    taskset -c 0 python -m benchmarks.train_copper --steps 50000
    taskset -c 0 python -m benchmarks.train_copper --steps 8000 --committee 4 --out result.json

The data are in ../shared/data: runs of EMT copper at 300 to 1500 K and rattled cells; validation is on other
runs. Prints the mean absolute errors of present and averaged parameters and the steps per second of the
processor's time. A committee also: the rank correlation, over structures, of what its members differ by and
how wrong their mean is, on the validation and together with structures unlike the data, made with ASE's EMT.
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax
from ase import units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin

from alchemi_jax import __version__
from alchemi_jax.models import CommitteeModel, evaluate, save
from alchemi_jax.training import Batches, Loss, Trainer, errors, network_for
from alchemi_jax.training.hooks import EMAHook


#: Beside the repository, or beside the folder of its worktrees.
DATA = next(
    (p / "shared" / "data" for p in Path(__file__).resolve().parents if (p / "shared" / "data").exists()),
    Path("../shared/data"),
)


def copper(folder=DATA, structures=None):
    """Training and validation data; of the training data so many structures, of all kinds."""
    train, valid = (Batches(folder / f"copper_{name}.extxyz.gz") for name in ("train", "valid"))
    if structures is not None:
        train = Batches(train.structures[:: len(train.structures) // structures][:structures])
    return train, valid


def make_trainer(data, steps, seed=0, rate=5e-3, energy=5.0, delta=0.05, **options):
    """The recipe; `delta` is that of forces. The schedule ends with the steps."""
    model = network_for(data, key=jax.random.key(seed), **options)
    loss = Loss(energy=energy, forces=1.0, kind="huber", delta={"energy": 0.01, "forces": delta})
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return Trainer(model, loss, optimizer, hooks=[EMAHook(0.999)])


def train(data, steps, seed=0, **options):
    """Present and averaged model, and the seconds of the processor without those of compiling."""
    trainer = make_trainer(data, steps, seed, **options)
    state = trainer.run(data, n_steps=1, key=jax.random.key(seed + 1))
    begun = time.process_time()
    state = jax.block_until_ready(trainer.run(data, n_steps=steps, state=state))
    return trainer.trained(state), trainer.averaged(state), time.process_time() - begun


def mean_errors(model, data):
    """Mean absolute errors: energy, meV per atom, and forces, meV/Å."""
    of_item = eqx.filter_jit(lambda model, item: _errors(model, *item.unpack()))
    total = None
    for item in data.fit_to(model).in_order():
        found = of_item(model, item)
        total = found if total is None else {name: total[name] + found[name] for name in found}
    return {name: 1000 * float(value.mae) for name, value in total.items()}


def _errors(model, batch, neighbors):
    return errors(model.evaluate(batch, neighbors), batch)


# -- a committee ---------------------------------------------------------------------------------------


def outside(seed=0):
    """Structures unlike the data, with labels: a hot liquid, strains of 12 %, surfaces."""
    rng = np.random.default_rng(seed)
    found = {"hot liquid": [], "strained by 12 %": [], "surfaces": []}
    liquid = bulk("Cu", "fcc", a=3.85, cubic=True).repeat(2)
    liquid.calc = EMT()
    # ASE 3.29 has another name for this than those before.
    spread = np.sqrt(liquid.get_masses() * units.kB * 8000)
    liquid.set_momenta(rng.standard_normal((len(liquid), 3)) * spread[:, None])
    run = Langevin(liquid, 3 * units.fs, temperature_K=4000, friction=0.02 / units.fs, rng=rng, fixcm=False)
    run.run(200)
    for _ in range(25):
        run.run(20)
        found["hot liquid"].append(liquid.copy())
    for _ in range(25):
        strain = rng.normal(size=(3, 3))
        strain = 0.12 * (strain + strain.T) / np.abs(np.linalg.eigvalsh(strain + strain.T)).max()
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(2)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        found["strained by 12 %"].append(atoms)
        size = int(rng.integers(3, 6))
        slab = (fcc111, fcc100, fcc110)[int(rng.integers(3))]("Cu", (2, 3, size), a=3.6, vacuum=7.0)
        slab.pbc = (True, True, False)
        found["surfaces"].append(slab)
    for name in ("strained by 12 %", "surfaces"):
        for atoms in found[name]:
            atoms.rattle(float(rng.uniform(0.03, 0.15)), rng=rng)
    return {name: [_labelled(atoms) for atoms in structures] for name, structures in found.items()}


def _labelled(atoms):
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def spread_and_error(committee, structures):
    """Of each structure, meV/Å: how far the forces of the members differ, and how far their mean is wrong."""
    found = evaluate(committee, structures, stress=False)
    spread, wrong = [], []
    for number, atoms in enumerate(structures):
        system = found[number]
        spread.append(np.sqrt(np.mean(np.asarray(system["forces_spread"]) ** 2)))
        wrong.append(np.sqrt(np.mean(np.sum((np.asarray(system.forces) - atoms.get_forces()) ** 2, axis=1))))
    return 1000 * np.array(spread), 1000 * np.array(wrong)


def rank_correlation(a, b):
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def judge(committee, valid, others=None):
    """Rank correlations by structure on the validation and together with others; medians of each kind."""
    kinds = {"validation": valid, **(outside() if others is None else others)}
    pairs = {name: spread_and_error(committee, structures) for name, structures in kinds.items()}
    everything = [np.concatenate([pair[k] for pair in pairs.values()]) for k in (0, 1)]
    return {
        "validation": rank_correlation(*pairs["validation"]),
        "with structures from outside": rank_correlation(*everything),
        "medians of spread and error, meV/A": {
            name: [round(float(np.median(x)), 2) for x in pair] for name, pair in pairs.items()
        },
    }


# -- the command ---------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--committee", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file of the figures")
    parser.add_argument("--save", help="a folder for the model, or the committee")
    given = parser.parse_args()
    data, valid = copper()
    members, rows = [], []
    for seed in range(given.seed, given.seed + given.committee):
        present, averaged, seconds = train(data, given.steps, seed)
        members.append(averaged)
        rows.append(
            {
                "seed": seed,
                "steps": given.steps,
                "processor_seconds": round(seconds, 1),
                "present": mean_errors(present, valid),
                "averaged": mean_errors(averaged, valid),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "alchemi_jax": __version__,
        "members": rows,
    }
    model = members[0]
    if len(members) > 1:
        model = CommitteeModel.of(members)
        structures = [data.to_ase() for data in valid.structures]
        result["committee"] = judge(model, structures)
        result["committee"]["errors of its mean"] = mean_errors(model, valid)
        print(json.dumps(result["committee"], indent=1))
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    if given.save:
        save(given.save, model, {"errors": rows[0]["averaged"]})


if __name__ == "__main__":
    main()
