"""Faults of physics stay in their system: each fault in each kind of engine, with observers beside."""

import dataclasses
import warnings

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import cluster

from alchemi_jax import AtomicData, Batch
from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import FIRE, LBFGS, NPT, NVE, FIREVariableCell, NVTLangevin, Rescue, Sampler
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import AbstractModel
from alchemi_jax.neighbors import ListSizes
from alchemi_jax.segments import sum_by_system
from alchemi_jax.systems.outcome import Outcome
from alchemi_jax.units import ASE_TIME


pytestmark = pytest.mark.cheap_xla

HEALTHY, WALL, EXPLOSION, OVERLAP = range(4)


class Trap(AbstractModel):
    """Wells at x = 2.5 Å. The charge of a system says what is wrong with it: data, so that all faults share
    compiled code. A wall beyond which the energy is not a number; a hill as steep as no time step allows; a
    repulsion between two atoms at one place."""

    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        fault = jnp.round(batch.charge).astype(jnp.int32)
        x, first = batch.positions - jnp.array([[2.5, 0, 0]]), jnp.minimum(batch.first_atom, 4)
        well = 0.25 * sum_by_system(batch, jnp.sum(x * x, axis=1))
        away = batch.positions[first, 0] > 0.5
        apart = jnp.sum((batch.positions[first] - batch.positions[first + 1]) ** 2, axis=1)
        near = 1 / jnp.where(fault == OVERLAP, apart, 1)
        faults = [well, jnp.where(away, jnp.nan, well), -2e4 * well, well + near]
        return jnp.stack(faults)[fault, jnp.arange(batch.system_capacity)]


def structures(fault, first=0):
    """Three systems; the second has the fault. Their names are numbers from `first` on."""
    out = []
    for i, code in enumerate((HEALTHY, fault, HEALTHY)):
        second = [0.1, 0, 0] if code == OVERLAP else [0.2 + i / 10, 3, 0]
        atoms = Atoms("Ar2", [[0.1, 0, 0], second], cell=[20] * 3, pbc=True)
        out.append(dataclasses.replace(AtomicData.from_ase(atoms, f"trap {first + i}"), charge=float(code)))
    return out


def batch_of(data):
    return Batch.from_data_list(data, system_capacity=3, atom_capacity=6)


TRAP = Trap()
MD = (WALL, EXPLOSION, OVERLAP)
#: Engines, the faults that they can meet, and how they are run.
CASES = {
    "NPT": (lambda: NPT(TRAP, dt=5.0, temperature=50.0, pressure=0.0, n_steps=40), MD),
    "FIREVariableCell": (lambda: FIREVariableCell(TRAP, dt=2.0, n_steps=40), (WALL, OVERLAP)),
    "LBFGS": (lambda: LBFGS(TRAP, n_steps=40), (WALL, OVERLAP)),
    "pipeline": (
        lambda: FIRE(TRAP, n_steps=3) + NVTLangevin(TRAP, dt=5.0, temperature=50.0, n_steps=40),
        MD,
    ),
}
NAN = "its energy is not finite in Trap"
REASONS = {WALL: NAN, EXPLOSION: "its ", OVERLAP: "its forces are not finite in Trap"}


def run(engine, *args, **kwargs):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = engine.run(*args, **kwargs)
    return out, [str(w.message) for w in seen if issubclass(w.category, RuntimeWarning)]


def of_others(out):
    return [np.asarray(out[n])[[0, 1, 4, 5]] for n in ("positions", "velocities", "forces")] + [
        np.asarray(out[n])[[0, 2]] for n in ("energy", "cell", "time", "steps_taken", "outcome")
    ]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def frames(sink, system):
    host = sink.read()
    return [host.positions[np.repeat(host.system_id == system, host.atoms_per_system)]]


@pytest.mark.parametrize("name", CASES)
def test_a_fault_stays_in_its_system(name, tmp_path):
    """Named once, with the reason; frozen, all of it finite; the others, their rows and frames are the same
    to the last bit. What watches changes nothing."""
    make, faults = CASES[name]
    results = {}
    for fault in (HEALTHY, *faults):
        sink = HostMemory()
        log = h.LoggingHook(backend="csv", log_path=tmp_path / f"{fault}.csv", frequency=7)
        engine = make().with_hooks(h.SnapshotHook(sink, frequency=7), log)
        out, messages = run(engine, batch_of(structures(fault)))
        rows = (tmp_path / f"{fault}.csv").read_text().splitlines()
        results[fault] = out, messages, sink, rows
    calm, silent, sink, rows = results[HEALTHY]
    assert not silent
    assert not calm.failed.any()
    if name == "LBFGS":
        assert_same(of_others(run(make(), batch_of(structures(HEALTHY)))[0]), of_others(calm))
    for fault in faults:
        out, messages, seen, written = results[fault]
        assert out.failed.tolist() == [False, True, False]
        assert out.outcome[1] == Outcome.FAILED
        assert len(messages) == 1, messages
        when = "before the first step" if fault == OVERLAP else f"in step {out.steps_taken[1]}"
        assert messages[0].startswith(f"trap 1 failed {when}: {REASONS[fault]}")
        known = ("positions", "velocities", "cell", "masses", "time")
        for field in (*known, *(() if fault == OVERLAP else ("energy", "forces"))):
            assert np.isfinite(np.asarray(out[field])).all(), field
        assert_same(of_others(out), of_others(calm))
        for system in (0, 2):
            assert_same(frames(seen, system), frames(sink, system))
        for system in ("0", "2"):
            number = rows[0].split(",").index("system_id")
            mine = [[r for r in text if r.split(",")[number] == system] for text in (written, rows)]
            assert mine[0] == mine[1]
            assert len(mine[0]) >= 5


def test_faults_leave_a_refilled_run():
    """Of all kinds, one after another; the same outcome as all at once, and the same bits."""
    data = [d for part, fault in enumerate((WALL, EXPLOSION, OVERLAP)) for d in structures(fault, 3 * part)]
    make, _ = CASES["pipeline"]
    out, messages = run(make(), sampler=Sampler(data, max_systems=3, max_atoms=6))
    out = out.take()
    assert out.failed.tolist() == [False, True, False] * 3
    assert [m.split(" failed")[0] for m in messages] == ["trap 1", "trap 4", "trap 7"]
    for part, fault in enumerate((WALL, EXPLOSION, OVERLAP)):
        alone = batch_of(structures(fault)).replace(system_id=np.arange(3, dtype=np.int32) + 3 * part)
        expected, _ = run(make(), alone)
        mine = slice(6 * part, 6 * part + 6)
        np.testing.assert_array_equal(out.positions[mine], expected.positions)
        np.testing.assert_array_equal(out.reason[3 * part : 3 * part + 3], expected.reason)


def test_a_list_that_overflows_while_another_system_fails_or_is_rescued(lj):
    """The steps are taken again with more room, and each is told once."""
    pair = np.concatenate([cluster(0, 4).positions - [11, 0, 0], cluster(1, 4).positions - [-11, 0, 0]])
    far = 300 + 20.0 * np.arange(84).reshape(28, 3)
    meet = Atoms("Ar36", positions=np.concatenate([pair, far]))
    velocities = np.zeros((36, 3))
    velocities[:4, 0], velocities[4:8, 0] = 0.01 * ASE_TIME, -0.01 * ASE_TIME
    meet.set_velocities(velocities)
    hot = cluster(2, 5)
    hot.set_velocities(np.random.default_rng(0).normal(0, 1e-3, (5, 3)))
    batch = Batch.from_ase([meet, hot])
    for tries, factor in ((1, 0.5), (1, 1e-200)):
        rescue = Rescue(tries=tries, factor=factor)
        engine = NVE(lj, dt=jnp.array([4.0, 1e200]), n_steps=300, rescue=rescue)
        state = engine.init(batch)
        needs = np.asarray(state.neighbors.needs)
        tight = state.replace(
            neighbors=nl.resized(state.neighbors, ListSizes(int(needs[0]), 1, 64, 0)),
        )
        assert not tight.overflow
        ends, told = [], []
        for begun in (state, tight):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                ends.append(engine.advance(begun, 300))
            told.append([str(w.message) for w in seen if issubclass(w.category, RuntimeWarning)])
        assert ends[1].neighbors.sizes.neighbors > needs[0]
        assert told[0] == told[1]
        assert len(told[0]) == (2 if factor == 0.5 else 1)
        assert ends[0].batch.failed.tolist() == [False, factor == 0.5]
        for field in ("positions", "velocities", "energy", "time", "rescues"):
            np.testing.assert_array_equal(ends[0].batch[field], ends[1].batch[field])
