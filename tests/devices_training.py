"""Checks of trainings over the four devices of `devices_program.py`: their losses are those of one device."""

import dataclasses
import functools
import re

import jax
import numpy as np
import optax
from conftest import cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics.hooks import CheckpointHook
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import LennardJones, evaluate
from alchemi_jax.neighbors.allocation import unbuilt_list
from alchemi_jax.training import Batches, Loss, Precision, Trainer, TrainingBatch, TrainingStage
from alchemi_jax.training.hooks import CallbackHook, ClipGradientsHook, EMAHook, LoggingHook


TRUTH = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.5)
START = LennardJones(epsilon=0.02, sigma=3.3, cutoff=8.5)


class Penalty(TracedHook):
    """Adds to the loss what follows from all systems of the batch, and from the parameters."""

    stage: TrainingStage = TrainingStage.AFTER_LOSS
    frequency: int = 1

    def __call__(self, ctx, stage):
        spread = jax.numpy.var(ctx.results.energy, where=ctx.batch.system_mask)
        return dataclasses.replace(ctx, loss=ctx.loss + 1e-3 * spread * ctx.model.sigma)


def raised(kind, function):
    """The exception that the function must raise."""
    try:
        function()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was not raised")


class Owned:
    """A batch of a user's own."""

    def __init__(self, batch):
        self.batch = batch

    def unpack(self):
        return self.batch, None

    def to_batch(self):
        return self.batch


class Own:
    """Data of a user's own."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def epoch(self, key, epoch, start=0):
        return map(Owned, self.batches[start:])

    def in_order(self):
        return map(Owned, self.batches)


def labelled():
    """Structures of several sizes, some without labels: devices have different numbers of them."""
    data = [cluster(seed, 3 + seed % 3, 0.3) for seed in range(14)]
    found = evaluate(TRUTH, data).to_ase()
    for k, atoms in enumerate(found):
        if k % 3 == 0:
            atoms.calc.results["forces"] = np.full((len(atoms), 3), np.nan)
        if k % 4 == 1:
            atoms.calc.results["energy"] = np.nan
    return found


def losses_of(folder, data, tag, devices, *hooks, **more):
    """The losses of all steps and validations, and the state."""
    seen = []
    trainer = Trainer(
        START,
        Loss(energy=1.0, forces=1.0),
        optax.adam(0.01),
        hooks=[
            Penalty(),
            ClipGradientsHook(limit=0.5),
            EMAHook(0.9),
            LoggingHook(log_path=folder / f"{tag}.csv", stage=TrainingStage.AFTER_BATCH),
            CallbackHook(
                lambda ctx: seen.append((int(ctx.step_count), float(ctx.loss))),
                TrainingStage.AFTER_VALIDATION,
            ),
            *hooks,
        ],
        precision=Precision("float64", loss_scale=4.0),
    )
    state = trainer.run(data, 3, validation=data, devices=devices, **more)
    return seen, np.genfromtxt(folder / f"{tag}.csv", delimiter=",", names=True), trainer.averaged(state)


def alike(a, b, what):
    (seen, rows, model), (others, more, other) = a, b
    assert rows.dtype.names == more.dtype.names
    assert len(rows) == len(more) > 5
    for name in rows.dtype.names:
        np.testing.assert_allclose(rows[name], more[name], rtol=1e-9, err_msg=f"{what}: {name}")
    np.testing.assert_allclose(seen, others, rtol=1e-9, err_msg=f"{what}: validations")
    for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, err_msg=what)
        assert x.sharding == y.sharding


def check_training(folder):
    """Losses, rows, averages and validations; batches that no number of devices divides."""
    data = Batches(labelled(), max_systems=6, buckets=1)
    run = functools.partial(losses_of, folder, data)
    one, four = run("one", None), run("four", "all")
    alike(one, four, "four devices")
    # It is stopped, and goes on with another number of devices.
    for tag, before, after in (("a", "all", None), ("b", None, "all")):
        asked = iter([False] * 4 + [True] * 99)
        stops = CheckpointHook(folder / tag, every_seconds=1e9, should_stop=lambda asked=asked: next(asked))
        error = raised(Interrupted, functools.partial(run, tag, before, stops, resume=folder / tag))
        assert 0 < int(error.state.step_count) < 8
        _, rows, model = run(tag, after, resume=folder / tag)
        alike(one, (one[0], rows, model), f"from {before} to {after}")


def check_listed():
    """Batches that were made by hand are dealt, too, as their atoms ask; stress where there is a cell."""
    short = [LennardJones(epsilon=e, sigma=3.4, cutoff=5.0) for e in (0.0104, 0.02)]
    cells = [*(crystal(seed, 1, 0.2) for seed in range(3)), cluster(0, 5), crystal(3, 1, 0.2)]
    found = evaluate(short[0], cells, stress=True).to_ase()
    found[1].calc.results["stress"] = np.full(6, np.nan)
    batches = [Batch.from_ase(found, results=True)]
    trainer = Trainer(short[1], Loss(energy=1.0, forces=1.0, stress=100.0), optax.sgd(1e-3))
    one, four = (trainer.run(batches, n_steps=3, devices=devices) for devices in (None, "all"))
    for x, y in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)
    state = four
    made = TrainingBatch(batches[0], neighbors=unbuilt_list(batches[0], START.requirements))
    for data, error, text in (
        ([made], ValueError, "give a TrainingBatch sizes"),
        (Own(batches), TypeError, "an? Owned has no method deal"),
    ):
        message = str(raised(error, functools.partial(trainer.run, data, n_steps=1, devices=2)))
        assert re.search(text, message), message
    # What comes back is on one device, and goes on there.
    assert int(trainer.run(batches, n_steps=4, state=state).step_count) == 4
