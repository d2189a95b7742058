"""Runs over several devices: the same paths, hooks, checkpoints and errors as on one.

What needs four devices is in `devices_program.py`, one process of its own. Here: what is refused, how systems
are dealt, and the devices themselves.
"""

import copy
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster

import alchemi_jax
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, NVTLangevin, Sampler
from alchemi_jax.dynamics.devices import devices
from alchemi_jax.dynamics.devices.deal import deal
from alchemi_jax.dynamics.devices.devices import as_devices, as_many_as_pay, cores_that_pay, count_cores
from alchemi_jax.dynamics.hooks import CallbackHook, FreezeAtomsHook, ReplicaExchangeHook, StageTimingHook
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import ASEModel, HarmonicModel, LennardJones
from alchemi_jax.training.devices import as_mesh


HERE = Path(__file__).parent
CPU = jax.devices("cpu")[0]


def test_four_devices_of_the_host():
    """Everything that needs compiled code, in one process that compiles it once."""
    flags = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "devices_program.py")]
    done = subprocess.run(command, env=flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["all", "is", "well"], done.stdout[-2000:]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_systems_are_dealt_by_cost(n):
    rng = np.random.default_rng(n)
    costs = rng.pareto(1.5, 40) + 0.1
    parts = deal(costs, n)
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    assert all((np.diff(part) > 0).all() for part in parts)
    spent = [costs[part].sum() for part in parts]
    # Of the rule: no device has more than the mean and the dearest system.
    assert max(spent) <= costs.sum() / n + costs.max()
    # As many systems everywhere where all are alike, and none is without.
    assert {len(part) for part in deal(np.ones(12), 4)} == {3}
    assert [len(part) for part in deal(np.ones(2), 5)] == [1, 1]


def test_devices_are_named_or_counted():
    assert as_devices(None, "run") is None
    assert as_devices(1, "run") is None
    assert as_devices([CPU, CPU], "run") == (CPU, CPU)
    if count_cores() > 1 and jax.local_device_count() == 1:
        assert as_devices("all", "run") == (CPU,) * count_cores()
    for wrong, text in (
        (0, "not 0"),
        ("both", "not 'both'"),
        (True, "not True"),
        (10**6, "there are"),
        ([], "empty"),
        ([3], "the number 3"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            as_devices(wrong, "run")


def test_of_all_cores_as_many_as_pay_are_used():
    pairs, other = LennardJones(epsilon=0.01, sigma=3.4, cutoff=8.5), HarmonicModel(k=0.1)
    assert cores_that_pay(pairs, 3999) == cores_that_pay(other, 399) == 1
    assert cores_that_pay(pairs, 8192) == cores_that_pay(pairs, 8192, 200) == 4
    assert cores_that_pay(pairs, 8192, 1) == 1
    # A few steps of a large network, such as CHGNet's 400,000 parameters, take seconds.
    large = eqx.tree_at(lambda model: model.k, other, jnp.ones(400_000))
    assert cores_that_pay(other, 768, 5) == 1
    assert cores_that_pay(large, 768, 5) > 32
    four = (CPU,) * 4
    assert as_many_as_pay("all", four, pairs, 3000) is None
    assert as_many_as_pay("all", four, pairs, 6000) == four[:3]
    # Who gives a number or a list gets it, and of a generator nobody knows how long it is.
    assert as_many_as_pay(4, four, pairs, 3000) == as_many_as_pay("all", four, pairs, None) == four


def test_cores_are_devices_only_before_jax_starts():
    there = jax.local_device_count("cpu")
    assert alchemi_jax.use_cores(there) == there
    with pytest.raises(RuntimeError, match="comes too late: JAX has started with"):
        alchemi_jax.use_cores(there + 1)
    with pytest.raises(ValueError, match="a number of cores"):
        alchemi_jax.use_cores(0)


class Counter(TracedHook):
    """Has a memory that all systems share."""

    stage: DynamicsStage = DynamicsStage.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        return jnp.zeros(3)

    def __call__(self, ctx, stage):
        return ctx


class Recorder(RecordingHook):
    """Records what a function makes of the batch."""

    stage = DynamicsStage.AFTER_STEP

    def __init__(self, function, stages=(DynamicsStage.AFTER_STEP,)):
        self.function, self.stages = function, stages

    def _runs_on_stage(self, stage):
        return stage in self.stages

    def record(self, ctx):
        return {"step": ctx.step_count, "value": self.function(ctx.batch)}

    def write(self, rows):
        pass


REFUSED = {
    "swaps": (ReplicaExchangeHook([20.0, 40.0]), "ReplicaExchangeHook relates systems"),
    "rows of atoms": (FreezeAtomsHook(np.array([0, 3])), "FreezeAtomsHook relates systems"),
    "clock": (StageTimingHook(), "StageTimingHook measures one device"),
    "shared memory": (Counter(), "Counter has a memory that all systems share"),
    "a sum": (Recorder(lambda b: b.energy.sum()), "Recorder records a number that several systems have"),
    "pairs": (
        Recorder(lambda b: b.energy[:, None] - b.energy[None]),
        "Recorder records a number that several",
    ),
    "two stages": (
        Recorder(lambda b: b.energy, (DynamicsStage.BEFORE_STEP, DynamicsStage.AFTER_STEP)),
        "Recorder records at 2 stages",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hooks_that_relate_systems_are_refused_by_name(what):
    hook, text = REFUSED[what]
    model = HarmonicModel(k=0.1)
    engine = NVTLangevin(model=model, dt=1.0, temperature=30.0, friction=0.01, n_steps=2, hooks=[hook])
    with pytest.raises(ValueError, match=text):
        engine.run(Batch.from_ase([cluster(0, 3), cluster(1, 3)]), devices=[CPU, CPU])


def test_in_a_stream_hooks_must_follow_systems():
    engine = NVE(model=HarmonicModel(k=0.1), dt=1.0, n_steps=2, hooks=[CallbackHook(print)])
    with pytest.raises(ValueError, match="CallbackHook is not known to identify systems by their ids"):
        engine.run(sampler=Sampler([cluster(0, 3)], devices=[CPU, CPU]))


def test_a_training_needs_devices_of_jax(monkeypatch):
    """Its cores are devices, unlike those of a run."""
    assert as_mesh(None, "run") is None
    with pytest.raises(ValueError, match="run: a device is in devices several times"):
        as_mesh([CPU, CPU], "run")
    monkeypatch.setattr(devices, "_all_devices", lambda: (CPU,) * 3)
    for asked in (3, "all"):
        with pytest.raises(ValueError, match=r"call alchemi_jax.use_cores\(\) before the first array"):
            as_mesh(asked, "run")


class Slow:
    """A calculator that looks at its atoms again after a while."""

    implemented_properties = ("energy", "forces")

    def get_potential_energy(self, atoms):
        self.atoms = atoms
        time.sleep(0.005)
        return float(len(self.atoms))

    def get_forces(self, atoms):
        time.sleep(0.005)
        return np.zeros((len(self.atoms), 3))


def test_parts_take_turns_with_a_calculator_of_ase():
    """There is one for all of them, and it holds one system at a time."""
    model = ASEModel(Slow())
    batches = [Batch.from_ase([cluster(k, n) for k in range(4)]) for n in (2, 3)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda batch: np.asarray(model.evaluate(batch, None).energy), batches))
    assert [energy.tolist() for energy in found] == [[2.0] * 4, [3.0] * 4]
    assert copy.deepcopy(model).calculator is not model.calculator
