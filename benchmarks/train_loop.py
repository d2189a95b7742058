"""What the loop of a training costs over the bare jitted step.

`taskset -c 0 python -m benchmarks.train_loop [pairs] [structures]` on one core. Epochs of a Trainer take
turns with as many steps on batches that are ready: of the jitted step of the same Trainer, and of a function
written by hand for `jax.jit` (gradient of the loss, update of optax) that checks nothing. The CPU times of
each turn give two ratios. Three trainers: without hooks, with a LoggingHook that writes a row of each step,
and with EMA, clipping and a schedule, which are in the step of the Trainer and not in that by hand.
"""

import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import optax

from alchemi_jax.models.base import results_of
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.training import Loss, Trainer, TrainingStage, network_for
from alchemi_jax.training.compiled import compiled_step
from alchemi_jax.training.hooks import ClipGradientsHook, EMAHook, LoggingHook, ScheduleHook
from benchmarks.train_copper import copper


def bare_step(model, loss, optimizer):
    """A training step as one writes it: jitted, with the data as an argument."""
    params, rest = Trainer(model, loss, optimizer).split()

    @jax.jit
    def step(params, state, count, item):
        batch, neighbors = item.unpack()

        def total(params):
            results = results_of(eqx.combine(params, rest), batch, neighbors, stress=False)
            return loss(results, batch, count)

        (value, _), gradients = jax.value_and_grad(total, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, count + 1, value

    return step, (params, optimizer.init(params), np.int32(0))


class Watch:
    """Calls a function at a stage; the batch is not fetched for it."""

    frequency, reads_batch = 1, False

    def __init__(self, function, stage):
        self.function, self.stage = function, stage

    def __call__(self, ctx, stage):
        self.function(ctx)


class Turns:
    """After each epoch of a Trainer as many steps of both kinds; the CPU times of all three."""

    def __init__(self, trainer, items):
        self.by_hand, self.state = bare_step(trainer.model, trainer.loss, optax.adam(1e-3))
        self.device, self.own = Partitioned(trainer.on_device()), trainer.init(items[0])
        self.items, self.begun = items, 0.0
        self.times = {"loop": [], "step": [], "by hand": []}

    def before(self, ctx):
        """An epoch begins."""
        self.begun = time.process_time()

    def after(self, ctx):
        """An epoch has ended: the loop has waited for its last step."""
        self._add("loop")
        rows, self.own = self.own.records, self.own.replace(records=())
        for item in self.items:
            self.own, rows, _ = compiled_step(self.device, self.own, rows, item)
        # Nobody reads the rows: after those that fit, further ones are not written.
        self.own = jax.block_until_ready(self.own.replace(records=rows))
        self._add("step")
        for item in self.items:
            *self.state, value = self.by_hand(*self.state, item)
        jax.block_until_ready((self.state, value))
        self._add("by hand")

    def _add(self, name):
        now = time.process_time()
        self.times[name].append(now - self.begun)
        self.begun = now

    def report(self, name):
        """The first turn compiles."""
        times = {name: np.array(some[1:]) for name, some in self.times.items()}
        print(f"{name:24} {1000 * np.median(times['loop']) / len(self.items):6.2f} ms a step", end="")
        for other in ("step", "by hand"):
            percent = 100 * (times["loop"] / times[other] - 1)
            low, mid, high = np.percentile(percent, (25, 50, 75))
            print(f"; over {other} {mid:+.1f} % ({low:+.1f} to {high:+.1f})", end="")
        print(flush=True)


def main(pairs=15, structures=400):
    train, _ = copper(structures=structures)
    model = network_for(train, key=jax.random.key(0))
    loss = Loss(energy=5.0, forces=1.0)
    adam, injected = optax.adam(1e-3), optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    folder = Path(tempfile.mkdtemp())
    log = LoggingHook(log_path=folder / "log.csv", stage=TrainingStage.AFTER_BATCH)
    some = [EMAHook(0.999), ClipGradientsHook(10.0), ScheduleHook(optax.cosine_decay_schedule(1e-3, 10_000))]
    for name, hooks, optimizer in (
        ("no hooks", [], adam),
        ("a row of each step", [log], adam),
        ("EMA, clipping, schedule", some, injected),
    ):
        trainer = Trainer(model, loss, optimizer, hooks=hooks)
        turns = Turns(trainer, list(train.fit_to(model, loss).in_order()))
        watch = [
            Watch(turns.before, TrainingStage.BEFORE_EPOCH),
            Watch(turns.after, TrainingStage.AFTER_EPOCH),
        ]
        Trainer(model, loss, optimizer, hooks=[*hooks, *watch]).run(train, epochs=pairs + 1)
        turns.report(name)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
