"""Records at BEFORE_STEP with final=True: the states after 0, f, 2f, ... and the last step, as in ASE."""

import csv

import numpy as np
import pytest
from conftest import cluster

from alchemi_jax import Batch, Trajectory
from alchemi_jax.dynamics import NVE, DynamicsStage, Sampler
from alchemi_jax.dynamics.hooks import LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.models import HarmonicModel


BEFORE = {"stage": DynamicsStage.BEFORE_STEP, "final": True}


def hooks(folder, **options):
    return [
        SnapshotHook(ZarrData(folder / "x.zarr", mode="w"), frequency=10, finished=False, **options),
        LoggingHook(log_path=folder / "x.csv", frequency=10, mode="w", **options),
    ]


def recorded(folder):
    """steps_taken of the frames and of the rows of each system."""
    frames, logged = Trajectory(folder / "x.zarr"), {}
    with open(folder / "x.csv", newline="") as file:
        for row in csv.DictReader(file):
            logged.setdefault(int(row["system_id"]), []).append(row)
    ids = frames.system_ids.tolist()
    assert ids == sorted(logged)
    for i in ids:
        series = frames.system(i)
        rows = logged[i]
        assert series.steps_taken.tolist() == [int(r["steps_taken"]) for r in rows]
        # Both show the same states.
        np.testing.assert_allclose(series.energy, [float(r["energy"]) for r in rows], rtol=1e-12)
    return {i: frames.system(i).steps_taken.tolist() for i in ids}


@pytest.mark.parametrize(
    ("options", "steps"), [(BEFORE, [0, 10, 20, 25]), ({}, [1, 11, 21])], ids=["before", "after"]
)
def test_frames_and_rows_of_a_run(tmp_path, options, steps):
    batch = Batch.from_ase([cluster(0, 3), cluster(1, 3)])
    end = NVE(model=HarmonicModel(), dt=1.0, n_steps=25, hooks=hooks(tmp_path, **options)).run(batch)
    assert recorded(tmp_path) == {0: steps, 1: steps}
    if options:
        frames = Trajectory(tmp_path / "x.zarr")
        np.testing.assert_array_equal(frames[0].positions, batch.take().positions)
        np.testing.assert_array_equal(frames[-1].positions, end.take().positions)


def test_each_system_of_a_refilled_run_has_its_last_state(tmp_path):
    structures = [cluster(i, 3) for i in range(3)]
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=25, hooks=hooks(tmp_path, **BEFORE))
    end = engine.run(sampler=Sampler(structures, max_systems=2))
    found = recorded(tmp_path)
    # Systems that enter later are recorded at the steps of the run.
    assert all(steps[-1] == 25 for steps in found.values())
    assert found[0] == [0, 10, 20, 25]
    last = Trajectory(tmp_path / "x.zarr").system(2).positions[-1]
    np.testing.assert_array_equal(last, end.take()[2].positions)


def test_final_goes_with_before_step(tmp_path):
    for make in (lambda **o: SnapshotHook(ZarrData(tmp_path / "x"), **o), LoggingHook):
        with pytest.raises(
            ValueError, match=r"final=True of .*Hook goes with stage=DynamicsStage.BEFORE_STEP"
        ):
            make(final=True)
