"""First and last frame: what stage= and final= record, and steps_taken in logs, tables and stores."""

import csv

import numpy as np
import pytest
from ase import Atoms
from conftest import cluster

from alchemi_jax import Batch, Trajectory
from alchemi_jax.dynamics import NVE, ConvergenceHook, DynamicsStage, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, ObservableHook, SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.models import HarmonicModel


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


START = {"stage": DynamicsStage.BEFORE_STEP, "final": True}
SPEED = 0.01
MODEL = HarmonicModel(k=0.0)


def flown(tmp_path, hooks=(), n_steps=20, **options):
    """Free flight of two systems; the steps behind each state by sink, log and table, and from positions."""
    batch = Batch.from_ase([Atoms("Ar")] * 2, system_capacity=2)
    batch = batch.replace(velocities=batch.velocities.at[:2, 0].set(SPEED))
    sink, path = HostMemory(), tmp_path / "log.csv"
    seen = ObservableHook({"x": lambda c: c.batch.positions[c.batch.first_atom, 0]}, 10, **options)
    snapshots = SnapshotHook(sink, 10, **options)
    log = LoggingHook(log_path=path, frequency=10, **options)
    NVE(MODEL, dt=1.0, n_steps=n_steps, hooks=[snapshots, log, seen, *hooks]).run(batch)
    frames, table = sink.read(), seen.table
    rows = list(csv.DictReader(path.read_text().splitlines()))
    flight = np.round(frames.positions[:, 0] / SPEED).astype(int)
    np.testing.assert_array_equal(flight, frames.steps_taken)
    np.testing.assert_array_equal(
        np.round(table["x"] / SPEED)[table["active"]], table["steps_taken"][table["active"]]
    )
    return (
        flight[frames.system_id == 0].tolist(),
        [int(r["steps_taken"]) for r in rows if r["system_id"] == "0"],
        table["steps_taken"][:, 0][table["active"][:, 0]].tolist(),
    )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 11]),
        ({"final": True}, [1, 11, 20]),
        (START, [0, 10, 20]),
    ],
    ids=["default", "final", "as ASE"],
)
def test_states_behind_frames_logs_and_tables(tmp_path, options, steps):
    assert flown(tmp_path, **options) == (steps, steps, steps)


def test_nothing_is_shown_twice(tmp_path):
    """The last regular record is that of the last state; and a run of which nothing moved."""
    assert flown(tmp_path, final=True, n_steps=11) == ([1, 11], [1, 11], [1, 11])
    at_once = [ConvergenceHook({"key": "positions", "threshold": 1.0, "reduce_op": "norm"})]
    (tmp_path / "log.csv").unlink()
    frames, log, table = flown(tmp_path, at_once, **START)
    assert frames[-1] == log[-1] == table[-1] == 0


def test_each_system_of_a_refilled_run_has_its_last_state(tmp_path):
    options = {"frequency": 10, "stage": DynamicsStage.BEFORE_STEP, "final": True}
    frames = SnapshotHook(ZarrData(tmp_path / "x.zarr"), finished=False, **options)
    log = LoggingHook(log_path=tmp_path / "x.csv", **options)
    structures = [cluster(i, 3) for i in range(3)]
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=25, hooks=[frames, log])
    end = engine.run(sampler=Sampler(structures, max_systems=2))
    found = Trajectory(tmp_path / "x.zarr")
    with open(tmp_path / "x.csv", newline="") as file:
        rows = [(int(r["system_id"]), int(r["steps_taken"])) for r in csv.DictReader(file)]
    for i in range(3):
        taken = found.system(i).steps_taken.tolist()
        assert taken == [n for system, n in rows if system == i]
        # Systems that enter later are recorded at the steps of the run.
        assert taken[-1] == 25
        np.testing.assert_array_equal(found.system(i).positions[-1], end.take()[i].positions)
    assert found.system(0).steps_taken.tolist() == [0, 10, 20, 25]
