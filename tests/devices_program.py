"""What `test_devices.py` checks with four devices of the host, in a process of its own.

One small engine of relaxation and one of dynamics: what is compiled for one device is shared by most checks.
"""

import dataclasses
import functools
import os
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np


jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
warnings.simplefilter("error")
# ASE does it, and numpy 2.5 warns.
warnings.filterwarnings("ignore", message="Setting the shape on a NumPy array", category=DeprecationWarning)

import cheap_xla  # noqa: E402
import devices_training  # noqa: E402
from conftest import cluster  # noqa: E402
from devices_training import raised  # noqa: E402

from alchemi_jax import Batch  # noqa: E402
from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin, Sampler, sweep  # noqa: E402
from alchemi_jax.dynamics.hooks import (  # noqa: E402
    CallbackHook,
    CheckpointHook,
    LoggingHook,
    ObservableHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.interrupt import Interrupted  # noqa: E402
from alchemi_jax.dynamics.sinks import HostMemory  # noqa: E402
from alchemi_jax.dynamics.stage import DynamicsStage as At  # noqa: E402
from alchemi_jax.hooks import TracedHook  # noqa: E402
from alchemi_jax.models import HarmonicModel, LennardJones  # noqa: E402
from alchemi_jax.systems.levels import level_fields  # noqa: E402


EXACT = jax.__version__.startswith("0.10.")
DEVICES = jax.devices("cpu")
#: Two devices; one of them for several parts, which share what is compiled.
TWO = [DEVICES[0], DEVICES[2], DEVICES[0]]
SOME = [DEVICES[0]] * 3
SPRINGS = HarmonicModel(k=0.1)
SIZES = (5, 3, 4, 2, 5, 5)
BATCH = Batch.from_ase(
    [cluster(seed, n, 0.1 + 0.5 * seed) for seed, n in enumerate(SIZES)], names=[f"c{i}" for i in range(6)]
)


class Push(TracedHook):
    """A traced hook with a value of its own: forces grow a little."""

    factor: float = 1.01
    stage: At = At.AFTER_COMPUTE
    frequency: int = 1

    def __call__(self, ctx, stage):
        return ctx.with_batch(forces=ctx.batch.forces * self.factor)


def relaxation(*hooks, **more):
    return FIRE(model=SPRINGS, n_steps=120, hooks=[ConvergenceHook.from_fmax(0.02), *hooks], **more)


def dynamics(*hooks, model=SPRINGS):
    # A temperature for each system.
    kelvin = np.linspace(10.0, 60.0, len(SIZES))
    return NVTLangevin(
        model=model, dt=4.0, temperature=kelvin, friction=0.01, n_steps=60, hooks=[Push(), *hooks]
    )


def equal(a, b, what):
    """Batches with the same fields: bit for bit where this JAX promises it, else to rounding."""
    for name, _ in level_fields(a):
        pairs = zip(jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)), strict=True)
        for x, y in pairs:
            same(x, y, f"{what}: {name}")


def same(x, y, what):
    x, y = np.asarray(x), np.asarray(y)
    if EXACT or x.dtype.kind != "f":
        np.testing.assert_array_equal(x, y, err_msg=what)
    else:
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=what)


def check_hooks(folder):
    """A relaxation with hooks of all kinds: what they see and write is what they do on one device."""
    seen = {}

    def hooks(tag):
        seen[tag] = []

        def look(ctx):
            b = ctx.batch
            names = [b.name_of(i) for i in range(len(b))]
            seen[tag].append(
                (ctx.step_count, names, b.energy.copy(), b.steps_taken.copy(), ctx.active_mask.copy())
            )
            assert threading.current_thread() is threading.main_thread()

        table = ObservableHook({"e": lambda ctx: ctx.batch.energy, "x": lambda ctx: ctx.batch.positions}, 7)
        log = LoggingHook(log_path=folder / f"{tag}.csv", frequency=5, stage=At.BEFORE_STEP, final=True)
        return [CallbackHook(look, frequency=5), table, log]

    one, many = (hooks(tag) for tag in ("one", "many"))
    whole, parts = relaxation(*one).run(BATCH), relaxation(*many).run(BATCH, devices=TWO)
    equal(whole, parts, "relaxed")
    assert parts.meta[2].name == "c2"
    assert len(set(np.asarray(whole.steps_taken).tolist())) > 2
    assert (folder / "one.csv").read_text() == (folder / "many.csv").read_text() or not EXACT
    assert len(seen["one"]) == len(seen["many"]) > 2, (len(seen["one"]), len(seen["many"]))
    for a, b in zip(seen["one"], seen["many"], strict=True):
        assert a[:2] == b[:2]
        for x, y in zip(a[2:], b[2:], strict=True):
            same(x, y, f"seen in step {a[0]}")
    for name, column in one[1].table.items():
        same(column, many[1].table[name], f"column {name}")


def check_advance():
    """Parts of a state go on, together or apart, on any number of devices."""
    engine = dynamics(model=LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.5))
    state = engine.init(BATCH)
    whole = engine.advance(engine.advance(state, 30), 30)
    once = engine.advance(state, 30, devices=SOME)
    assert int(once.step_count) == 30
    equal(whole.batch, engine.advance(once, 30).batch, "then on one")
    equal(whole.batch, engine.advance(once, 30, devices=SOME).batch, "then on several again")


def check_errors():
    """The first error ends all parts, and has a state of all systems."""

    def fail(ctx):
        if ctx.step_count == 20:
            raise RuntimeError("enough")

    error = raised(RuntimeError, lambda: dynamics(CallbackHook(fail, frequency=10)).run(BATCH, devices=SOME))
    assert str(error) == "enough"
    assert any("CallbackHook at AFTER_STEP of step 20" in note for note in error.__notes__)
    assert error.state.batch.num_systems == len(SIZES)
    assert (np.asarray(error.state.batch.steps_taken)[: len(SIZES)] >= 21).all()
    assert not any(thread.name.startswith("alchemi-jax part") for thread in threading.enumerate())


def check_interrupt():
    """After Ctrl-C all systems have taken the same number of steps, and go on."""
    engine = dataclasses.replace(dynamics(), n_steps=10**8)
    # Shells start jobs in the background with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    state = raised(Interrupted, lambda: engine.run(BATCH, devices=SOME)).state
    n = int(state.step_count)
    assert set(np.asarray(state.batch.steps_taken)[: len(SIZES)].tolist()) == {n}
    begun = engine.init(BATCH)
    equal(engine.advance(begun, n + 5).batch, engine.advance(state, 5, devices=SOME).batch, "after Ctrl-C")


def told_after(times):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) >= times

    return should_stop


def check_checkpoints(folder):
    """A run that was stopped on some devices goes on on others, with its log."""

    def engine(tag, *hooks, **more):
        log = LoggingHook(log_path=folder / f"{tag}.csv", frequency=5)
        return dynamics(log, CheckpointHook(folder / tag, 20, None, **more), *hooks)

    whole = engine("whole").run(BATCH)
    slow = CallbackHook(lambda ctx: time.sleep(0.05), frequency=5)
    for tag, before, after in (("a", SOME, None), ("b", None, SOME)):
        begun = engine(tag, slow, should_stop=told_after(2))
        error = raised(Interrupted, functools.partial(begun.run, BATCH, devices=before, resume=folder / tag))
        assert 0 <= int(error.state.step_count) < 60
        equal(whole, engine(tag).run(BATCH, devices=after, resume=folder / tag), f"from {before} to {after}")
        assert not EXACT or (folder / f"{tag}.csv").read_text() == (folder / "whole.csv").read_text(), tag


def check_stream(folder):
    """Every system once, in input order, with the same path, frames and rows; also from checkpoints."""
    atoms = [cluster(seed, 2 + seed % 4) for seed in range(14)]

    def run(tag, devices, n_steps=None, **more):
        frames = HostMemory()
        hooks = [LoggingHook(log_path=folder / f"{tag}.csv", frequency=5)]
        last = CheckpointHook(folder / tag, 20, None, **more) if more else SnapshotHook(frames, 10, False)
        hooks.append(last)
        sampler = Sampler(atoms, max_systems=3, devices=devices)
        resume = folder / tag if more else None
        out = relaxation(*hooks).run(sampler=sampler, n_steps=n_steps, resume=resume)
        return out, sorted((folder / f"{tag}.csv").read_text().split("\n")), frames, sampler.traffic

    whole, rows, frames, _ = run("one", None)
    many, more, others, traffic = run("many", SOME)
    equal(whole, many, "stream")
    assert rows == more or not EXACT
    assert len(frames) == len(others)
    assert traffic.systems == 14
    assert len(traffic.busy) == len(SOME)
    for tag, before, after in (("t", SOME, None), ("u", None, SOME)):
        error = raised(Interrupted, functools.partial(run, tag, before, should_stop=told_after(1)))
        assert before is None or len(error.in_flight) > 3
        out, mine, _, _ = run(tag, after, keep=2)
        equal(whole, out, f"stream from {before} to {after}")
        assert rows == mine or not EXACT, tag


def check_page():
    """The examples of the page on devices; the first ones are for one core, the training is for all."""
    page = (Path(__file__).parent.parent / "docs" / "howto" / "devices.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert names["relaxed"].num_systems == 4
    assert 0.01 < float(names["trainer"].trained(names["state"]).epsilon) < 0.02


def check_sweep():
    engine = NVTLangevin(model=SPRINGS, dt=4.0, temperature=30.0, friction=0.01, n_steps=40)
    values = {"temperature": [10.0, 20.0, 30.0, 40.0], "together": 1}
    one, many = sweep(engine, BATCH, **values), sweep(engine, BATCH, devices=SOME, **values)
    for name, column in one.items():
        same(column, many[name], name)


def main():
    assert len(DEVICES) == 4
    # What is compared bit for bit was compiled with the same options.
    cheap_xla.switch_on()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("hooks", "checkpoints", "stream", "training"):
            (Path(folder) / name).mkdir()
        check_hooks(Path(folder) / "hooks")
        check_advance()
        check_errors()
        check_interrupt()
        check_checkpoints(Path(folder) / "checkpoints")
        check_stream(Path(folder) / "stream")
        check_page()
        check_sweep()
        devices_training.check_training(Path(folder) / "training")
        devices_training.check_listed()
    print("all is well")


if __name__ == "__main__":
    sys.exit(main())
