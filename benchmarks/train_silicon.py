"""A potential that needs angles: Stillinger-Weber silicon, crystal, melt, amorphous, made by our engine.

    taskset -c 0 python -m benchmarks.train_silicon --steps 20000
    taskset -c 0 python -m benchmarks.train_silicon --steps 20000 --angular 0

24 cells of 64 atoms: eight strained crystals at 300 to 1500 K, eight melts at 2500 to 3500 K, and the same
eight cooled to 300 K within 10 ps, of which 25 frames each are taken. Validation is on the last two runs of
each kind. Prints the mean absolute errors and the seconds of the processor, without those of compiling;
the data take a minute more.
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path

import jax
import numpy as np
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.models import StillingerWeber, evaluate, save
from alchemi_jax.training import Batches
from benchmarks.train_copper import mean_errors, train


FRAMES, BETWEEN, RUNS = 25, 50, 8


def _run(batch, temperature, steps, key):
    engine = NVTLangevin(model=StillingerWeber(), dt=2.0, temperature=temperature, friction=0.02)
    return engine.run(batch, steps, key=key)


def _frames(batch, temperature, key, steps):
    """Structures of each run, a list of lists, after so many steps."""
    batch = _run(batch, temperature, steps, key)
    out = [[] for _ in range(RUNS)]
    for number in range(FRAMES):
        batch = _run(batch, temperature, BETWEEN, jax.random.fold_in(key, number))
        for run, atoms in zip(out, batch.to_ase(), strict=True):
            run.append(atoms)
    return batch, out


def silicon(seed=0):
    """Structures with labels, to train on and to validate with, by kind."""
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 8)
    cells = []
    for _ in range(RUNS):
        atoms = bulk("Si", "diamond", a=5.43, cubic=True).repeat(2)
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        cells.append(atoms)
    warm, hot = np.linspace(300, 1500, RUNS), np.linspace(2500, 3500, RUNS)
    crystal = initialize_velocities(Batch.from_ase(cells), warm, key=keys[0])
    kinds = {"crystal": _frames(crystal, warm, keys[1], 500)[1]}
    molten = _run(crystal, 6000.0, 1500, keys[2])
    molten, kinds["melt"] = _frames(molten, hot, keys[3], 1500)
    for number, share in enumerate(np.linspace(1, 0, 10)):
        cooled = 300 + share * (hot - 300)
        molten = _run(molten, cooled, 500, jax.random.fold_in(keys[4], number))
    kinds["amorphous"] = _frames(molten, 300.0, keys[5], 500)[1]
    train, valid = [], {}
    for name, runs in kinds.items():
        labelled = evaluate(StillingerWeber(), [atoms for run in runs for atoms in run]).to_ase()
        train += labelled[: -2 * FRAMES]
        valid[name] = labelled[-2 * FRAMES :]
    return train, valid


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--angular", type=int, default=6)
    parser.add_argument("--gaussians", type=int, default=16)
    parser.add_argument("--cutoff", type=float, default=4.0)
    parser.add_argument("--systems", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file of the figures")
    parser.add_argument("--save", help="a folder for the model")
    given = parser.parse_args()
    begun = time.process_time()
    structures, valid = silicon()
    forces = np.concatenate([a.get_forces() for a in structures])
    size, seconds = np.sqrt(np.mean(forces**2)), time.process_time() - begun
    print(f"{len(structures)} structures in {seconds:.0f} s, forces of {size:.2f} eV/Å", flush=True)
    data = Batches(structures, max_systems=given.systems)
    options = {"cutoff": given.cutoff, "gaussians": given.gaussians, "angular": given.angular}
    _, model, seconds = train(data, given.steps, given.seed, delta=0.1, **options)
    result = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        **vars(given),
        "features": model.n_features,
        "processor_seconds": round(seconds, 1),
        "mean absolute errors, meV/atom and meV/A": {
            name: mean_errors(model, Batches(some)) for name, some in valid.items()
        },
    }
    print(json.dumps(result, indent=1))
    if given.out:
        Path(given.out).write_text(json.dumps(result, indent=1) + "\n")
    if given.save:
        save(given.save, model)


if __name__ == "__main__":
    main()
