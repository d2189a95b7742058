"""What is recorded of a system depends on its own steps alone: not on batch mates, nor on when it entered."""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import cluster

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, DynamicsStage, NVTLangevin, Sampler
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, LoggingHook, ObservableHook, SnapshotHook
from alchemi_jax.dynamics.host_steps import entry_unit
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import fmax


SIZES = (3, 2, 4, 2, 3, 1, 2)
FIELDS = ("system_id", "steps_taken", "status", "energy", "positions", "velocities", "forces")
FIRST = {"stage": DynamicsStage.BEFORE_STEP, "final": True}
MODEL = HarmonicModel(k=0.5)


def structures():
    atoms = [cluster(i, n, 0.2 + 0.2 * i) for i, n in enumerate(SIZES)]
    # In its minimum: it takes no step of the relaxation.
    atoms[5].positions[:] = 0
    return atoms


class Observed:
    """A pipeline with all hooks that follow the steps of systems; what they saw, by system and step."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.path = folder / "log.csv"
        self.frames, self.begun, self.once = HostMemory(), HostMemory(), HostMemory()
        self.table = ObservableHook({"fmax": fmax}, frequency=5)
        relax = FIRE(
            model=MODEL,
            n_steps=60,
            hooks=[ConvergenceHook.from_fmax(0.02), ConvergedSnapshotHook(self.once), self.table],
        )
        moves = NVTLangevin(
            model=MODEL,
            dt=2.0,
            temperature=30.0,
            friction=0.02,
            n_steps=17,
            hooks=[SnapshotHook(self.begun, 6)],
        )
        self.engine = (relax + moves).with_hooks(
            LoggingHook(log_path=self.path, frequency=3, **FIRST),
            SnapshotHook(self.frames, 4, finished=False, **FIRST),
        )

    def rows(self):
        with open(self.path, newline="") as file:
            rows = [tuple(row.items()) for row in csv.DictReader(file)]
        found = {"log": sorted(rows, key=lambda r: (int(r[1][1]), int(r[0][1])))}
        for name, sink in (("frames", self.frames), ("begun", self.begun), ("once", self.once)):
            host = sink.read()
            order = np.lexsort((host.steps_taken, host.system_id))
            host = host.take(order)
            for field in FIELDS:
                found[f"{name}, {field}"] = getattr(host, field).tolist()
        table = self.table.table
        columns = (table[k][table["active"]].tolist() for k in ("system_id", "steps_taken", "fmax"))
        return found | {"table": sorted(zip(*columns, strict=True))}


@pytest.mark.cheap_xla
def test_records_of_a_system_depend_on_nothing_but_the_system(tmp_path):
    """Alone, in a batch, and refilled: bit for bit, in logs, stores and tables."""
    key, whole = jax.random.key(1), Batch.from_ase(structures())
    batch = Observed(tmp_path / "batch")
    out = batch.engine.run(whole, key=key).take()
    wanted = batch.rows()
    assert out.steps_taken[5] == 17
    assert len(set(out.steps_taken.tolist())) > 3
    for i, n in enumerate(out.steps_taken.tolist()):
        steps = [int(dict(r)["step"]) for r in wanted["log"] if int(dict(r)["system_id"]) == i]
        assert steps == [*range(0, n, 3), n]
    ids, taken = (np.array(wanted[f"frames, {name}"]) for name in ("system_id", "steps_taken"))
    for i, n in enumerate(out.steps_taken.tolist()):
        assert taken[ids == i].tolist() == [*range(0, n, 4), n]

    refilled = Observed(tmp_path / "refilled")
    assert entry_unit(refilled.engine) == 2
    sampler = Sampler(structures(), max_systems=3, max_atoms=16, refill_share=0.3)
    refilled.engine.run(sampler=sampler, key=key)
    assert refilled.rows() == wanted

    # As many places as the refilled batch has, so that the program is the same.
    alone = Observed(tmp_path / "alone")
    for i in range(len(whole)):
        alone.engine.run(Batch.from_host(whole.to_host([i]), 16, 3, largest=whole.largest), key=key)
    assert alone.rows() == wanted
