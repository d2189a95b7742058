"""First and last frame: what stage= and final= record, and steps_taken in logs, tables and stores."""

import csv

import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, ConvergenceHook, DynamicsStage, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, ObservableHook, SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import HarmonicModel


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


def test_a_sampler_has_no_end_of_its_own():
    engine = NVE(MODEL, dt=1.0, n_steps=2, hooks=[SnapshotHook(HostMemory(), final=True)])
    with pytest.raises(ValueError, match="SnapshotHook has final=True, but with a sampler"):
        engine.run(sampler=Sampler([Atoms("Ar")]))
