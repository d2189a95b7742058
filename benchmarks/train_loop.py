"""What the loop of a training costs over the bare jitted step.

`taskset -c 0 python -m benchmarks.train_loop [pairs] [structures]` on one core. Epochs of a Trainer, and as
many steps of a function written by hand for `jax.jit` (gradient of the loss, update of optax) on batches that
are ready, take turns within one run; the CPU time of each pair gives a ratio. Three trainers: without hooks,
with a LoggingHook that writes a row of each step, and with EMA, clipping and a schedule, which change the
step itself.
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
from alchemi_jax.training import Loss, Trainer, TrainingStage, network_for
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


class Pairs:
    """Between two epochs of a Trainer as many bare steps; the CPU times of both."""

    def __init__(self, model, loss, optimizer, items):
        self.step, self.state = bare_step(model, loss, optimizer)
        self.items, self.begun = items, 0.0
        self.loop, self.bare = [], []

    def before(self, ctx):
        """An epoch begins."""
        self.begun = time.process_time()

    def after(self, ctx):
        """An epoch has ended: the loop has waited for its last step."""
        self.loop.append(time.process_time() - self.begun)
        begun = time.process_time()
        for item in self.items:
            *self.state, value = self.step(*self.state, item)
        jax.block_until_ready((self.state, value))
        self.bare.append(time.process_time() - begun)

    def report(self, name):
        """The first pair compiles."""
        loop, bare = np.array(self.loop[1:]), np.array(self.bare[1:])
        percent = 100 * (loop / bare - 1)
        low, mid, high = np.percentile(percent, (25, 50, 75))
        ms = 1000 * np.median(bare) / len(self.items)
        print(
            f"{name:28} bare {ms:6.2f} ms  loop {mid:+5.1f} % (quartiles {low:+.1f} to {high:+.1f})",
            flush=True,
        )


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
        items = list(train.fit_to(model, loss).in_order())
        both = Pairs(model, loss, adam, items)
        watch = [
            Watch(both.before, TrainingStage.BEFORE_EPOCH),
            Watch(both.after, TrainingStage.AFTER_EPOCH),
        ]
        Trainer(model, loss, optimizer, hooks=[*hooks, *watch]).run(train, epochs=pairs + 1)
        both.report(name)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
