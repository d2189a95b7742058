"""A first potential: a small invariant network on copper, from files with energies and forces.

`python -m benchmarks.train_copper [steps] [folder]` on one core (`taskset -c 0`). The data are in
../shared/data: runs of EMT copper at 300 to 1500 K and rattled cells; validation is on other runs. Prints the
mean absolute errors of present and averaged parameters and the steps per second; saves the model in the
folder.
"""

import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import optax

from alchemi_jax.training import Batches, Loss, Trainer, errors, network_for
from alchemi_jax.training.hooks import EMAHook


DATA = next(
    (p for p in (Path("../shared/data"), Path("../../shared/data")) if p.exists()), Path("../shared/data")
)


def copper(folder=DATA, structures=None):
    """Training and validation data; the first structures of the training data alone, if so many are given."""
    train, valid = (Batches(folder / f"copper_{name}.extxyz.gz") for name in ("train", "valid"))
    return train if structures is None else Batches(train.structures[:structures]), valid


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


def make_trainer(data, steps, seed=0, rate=5e-3, energy=5.0):
    """The recipe. The schedule ends with the steps."""
    model = network_for(data, key=jax.random.key(seed))
    loss = Loss(energy=energy, forces=1.0, kind="huber", delta={"energy": 0.01, "forces": 0.05})
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return Trainer(model, loss, optimizer, hooks=[EMAHook(0.999)])


def main(steps=8000, folder=None):
    train, valid = copper()
    trainer = make_trainer(train, steps)
    state = trainer.run(train, n_steps=1, key=jax.random.key(1))
    begun, cpu = time.perf_counter(), time.process_time()
    state = trainer.run(train, n_steps=steps, state=state)
    jax.block_until_ready(state)
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"{steps} steps: {steps / wall:.0f} per second, {steps / cpu:.0f} per second of CPU time")
    for name, model in (("present", trainer.trained(state)), ("averaged", trainer.averaged(state))):
        found = mean_errors(model, valid)
        print(f"{name}: energy {found['energy']:.3f} meV/atom, forces {found['forces']:.2f} meV/Å")
    if folder is not None:
        from alchemi_jax.models.trained import save

        save(folder, trainer.averaged(state))


if __name__ == "__main__":
    main(*(int(a) if n == 0 else a for n, a in enumerate(sys.argv[1:])))
