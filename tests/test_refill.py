"""Refilling: every system comes out once, as if it had been alone with its batch mates all along."""

import dataclasses

import jax
import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.io import write
from conftest import EPSILON, SIGMA, cluster, crystal
from counting import Counting

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    ConvergenceHook,
    NVTLangevin,
    Sampler,
    initialize_velocities,
    integrate_all,
    relax_all,
)
from alchemi_jax.dynamics.api import draw_velocities
from alchemi_jax.dynamics.hooks import (
    ConvergedSnapshotHook,
    LoggingHook,
    ObservableHook,
    ReplicaExchangeHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.models import LennardJones
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.systems.observables import fmax


MODEL = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=50.0)
SIZES = (5, 13, 2, 9, 13, 7, 3, 12, 4, 13, 6, 8, 11, 2, 10, 13, 5)


def structures(n=17):
    return [cluster(i, SIZES[i % len(SIZES)]) for i in range(n)]


def few(source, **more):
    """Room for four systems, in all tests the same, so that they share what is compiled."""
    return Sampler(source, **{"max_systems": 4, "max_atoms": 40} | more)


def relax(**more):
    hooks = [ConvergenceHook.from_fmax(0.01), *more.pop("hooks", [])]
    return FIRE(model=MODEL, n_steps=300, hooks=hooks, **more)


def langevin(**more):
    settings = {"dt": 2.0, "temperature": 20.0, "friction": 0.02, "n_steps": 37} | more
    return NVTLangevin(model=MODEL, **settings)


def pipeline():
    return relax(hooks=[Counting()]) + langevin(hooks=[Counting()])


def same(found: Batch, wanted: Batch):
    """Bit for bit, in every field that says something of a system."""
    a, b = found.take(), wanted.take()
    for name, _ in level_fields(a):
        if name.endswith("_extras"):
            continue
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def counted():
    return relax(hooks=[Counting()])


@pytest.mark.parametrize(
    ("engine", "policy"),
    [
        pytest.param(counted, "best fit", marks=pytest.mark.cheap_xla),
        pytest.param(relax, "largest first", marks=pytest.mark.cheap_xla),
        pytest.param(langevin, "first come", marks=pytest.mark.cheap_xla),
        # All of it at once, compiled as users compile.
        (pipeline, "first come"),
    ],
)
def test_a_refilled_run_is_the_run_of_all_at_once(engine, policy):
    """Algorithm states, memories, noise, budgets: no bit of a system depends on who else is in flight."""
    engine = engine()
    batch = Batch.from_ase(structures())
    wanted = engine.run(batch, key=jax.random.key(3))
    sampler = few(structures(), policy=policy, window=3)
    found = engine.run(sampler=sampler, key=jax.random.key(3))
    same(found, wanted)
    assert [m.name for m in found.meta] == [m.name for m in batch.meta]
    assert sampler.traffic.systems == len(SIZES)
    assert sampler.traffic.refills >= 4
    assert 0.3 < sampler.traffic.occupancy <= 1


@pytest.mark.cheap_xla
@pytest.mark.parametrize("share", [0.01, 1.0])
def test_when_it_is_refilled_changes_nothing(share):
    wanted = relax().run(Batch.from_ase(structures()))
    sampler = few(structures(), refill_share=share)
    same(relax().run(sampler=sampler), wanted)


def test_the_share_that_is_waited_for_follows_what_systems_take():
    from alchemi_jax.dynamics.refill_share import WAVE, best_share

    rng = np.random.default_rng(3)
    alike, exponential = rng.normal(48, 4, 512), rng.exponential(48, 512) + 1
    # Systems that began together and end together are waited for; where they come and go, the dearer a
    # refill, the longer, by the rule x = q / (1 + q/2), q² = 2 refill / steps.
    assert best_share(13.0, alike, 64) == WAVE
    shares = [best_share(cost, exponential, 64) for cost in (0.01, 2.0, 13.0)]
    q = np.sqrt(2 * np.array([2.0, 13.0]) / exponential.mean())
    np.testing.assert_allclose(shares[1:], q / (1 + q / 2), rtol=1e-12)
    assert shares[0] == 0.05


@pytest.mark.cheap_xla
def test_crystals_with_lists_that_grow_and_other_rows():
    """Periodic systems: images and slots of a list move with their system; stress of those that leave."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=7.0)
    atoms = [crystal(i, 1 + i % 2, 0.1, 5.2 + 0.02 * i) for i in range(9)]
    atoms[5].positions[:8] += 1.5
    engine = FIRE(model=model, n_steps=60, hooks=[ConvergenceHook.from_fmax(0.02)])
    wanted = engine.run(Batch.from_ase(atoms)).take()
    found = engine.run(sampler=Sampler(atoms, max_systems=3, max_pairs=20_000)).take()
    np.testing.assert_array_equal(found.steps_taken, wanted.steps_taken)
    for name in ("positions", "energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-9)


@pytest.mark.cheap_xla
def test_sources_of_all_kinds_give_the_same(tmp_path):
    atoms = structures()
    write(tmp_path / "in.extxyz", atoms)
    stored = ZarrData(tmp_path / "in.zarr")
    stored.write(Batch.from_ase(atoms))
    wanted = relax().run(Batch.from_ase(atoms)).take()
    sources = {
        "list": atoms,
        "data": [AtomicData.from_ase(a) for a in atoms],
        "generator": (a for a in atoms),
        "batch": Batch.from_ase(atoms),
        "sink": stored,
    }
    for name, source in sources.items():
        found = relax().run(sampler=few(source, window=2)).take()
        np.testing.assert_array_equal(found.positions, wanted.positions, err_msg=name)
    # Eight digits of positions.
    found = relax().run(sampler=few(tmp_path / "in.extxyz")).take()
    np.testing.assert_allclose(found.energy, wanted.energy, atol=1e-5)


def test_a_generator_is_read_as_the_run_goes_on():
    """At most the window, and what is being joined to it, is read ahead of what left."""
    read, left = [], []

    def source():
        for i in range(60):
            read.append(i)
            yield cluster(i, 3 + i % 4)

    class Seen(HostMemory):
        def write(self, batch, mask=None):
            left.append((len(read), int(np.sum(mask))))
            super().write(batch, mask)

    sampler = Sampler(source(), max_systems=4, window=8)
    sink = relax().run(sampler=sampler, sink=Seen())
    assert sorted(sink.read().take().system_id.tolist()) == list(range(60))
    gone = 0
    for ahead, now in left:
        assert ahead - gone <= 4 + 8 + 4 + 2 * 8
        gone += now


@pytest.mark.cheap_xla
def test_finished_systems_go_to_the_sink_as_they_finish(tmp_path):
    sink = ZarrData(tmp_path / "out.zarr")
    assert relax().run(sampler=few(structures()), sink=sink) is sink
    out = sink.read().take()
    assert sorted(out.system_id.tolist()) == list(range(len(SIZES)))
    assert out.system_id.tolist() != sorted(out.system_id.tolist())
    order = np.argsort(out.system_id)
    wanted = relax().run(Batch.from_ase(structures())).take()
    np.testing.assert_array_equal(out.take(order).positions, wanted.positions)


@pytest.mark.cheap_xla
def test_a_sink_that_fails_stops_the_run_and_is_named():
    class Full(HostMemory):
        def write(self, batch, mask=None):
            if len(self) > 2:
                raise OSError(28, "No space left on device")
            super().write(batch, mask)

    sink = Full()
    with pytest.raises(OSError, match="No space left") as e:
        relax().run(sampler=few(structures(), refill_share=0.3), sink=sink)
    assert any("Full" in note and "step" in note for note in e.value.__notes__)
    assert len(sink) > 2


def test_what_is_finished_when_it_is_interrupted_is_in_the_sink():
    """Every finished system is there once, with its rows in the log of another hook."""

    class Interrupt:
        stage, frequency, finished = DynamicsStage.AFTER_STEP, 5, 0

        def __call__(self, ctx, stage):
            self.finished = int((ctx.batch.status >= ctx.workflow.exit_status).sum())
            if self.finished:
                raise KeyboardInterrupt

    hook, sink = Interrupt(), HostMemory()
    log = ObservableHook({"fmax": fmax})
    engine = relax(hooks=[log, hook])
    with pytest.raises(KeyboardInterrupt):
        engine.run(sampler=Sampler(structures(), max_systems=4, refill_share=1.0), sink=sink)
    out = sink.read()
    assert len(out) == hook.finished > 0
    assert out.converged.all()
    assert log.table["step"][-1] + 1 >= out.steps_taken.max()


@pytest.mark.cheap_xla
def test_nothing_compiles_anew(compilations):
    """One segment and one refill, whatever comes; and other numbers change nothing."""

    def run(temperature, seed):
        atoms = [cluster(seed + i, SIZES[i % len(SIZES)]) for i in range(30)]
        engine = relax() + langevin(temperature=temperature)
        engine.run(sampler=Sampler(atoms, max_systems=6, max_atoms=70))

    with compilations() as names:
        run(20.0, 0)
    assert sum("_segment" in n for n in names) == 1
    assert sum("_refill_rows" in n for n in names) == 1
    with compilations() as names:
        run(30.0, 100)
    assert names == []


@pytest.mark.cheap_xla
def test_hooks_see_who_is_there(tmp_path):
    """Rows carry system ids; host hooks see names; each converged system is written once."""
    log = LoggingHook(log_path=tmp_path / "log.csv")
    seen = ObservableHook({"fmax": fmax})
    once = HostMemory()
    frames = HostMemory()
    hooks = [log, seen, ConvergedSnapshotHook(once), SnapshotHook(frames, frequency=7)]
    out = relax(hooks=hooks).run(sampler=few(structures())).take()
    assert sorted(once.read().take().system_id.tolist()) == np.flatnonzero(out.converged).tolist()
    table = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    ids, counts = np.unique(table["system_id"], return_counts=True)
    moved = out.steps_taken > 0
    assert ids.tolist() == np.flatnonzero(moved).tolist()
    assert counts.tolist() == out.steps_taken[moved].tolist()
    rows = seen.table
    counts = np.bincount(rows["system_id"][rows["active"]], minlength=len(SIZES))
    assert counts.tolist() == out.steps_taken.tolist()
    seen = frames.read().take()
    for i, meta in zip(seen.system_id.tolist(), seen.meta, strict=True):
        assert meta.name == f"system {i} (Ar{SIZES[i]})"


def test_who_does_not_fit_is_named_and_raises_or_is_left_out():
    atoms = [cluster(0, 3), cluster(1, 13), cluster(2, 4)]
    with pytest.raises(
        ValueError, match=r"system 1 \(Ar13\) does not fit the sampler: it has 13 atoms, max_atoms is 8"
    ):
        relax().run(sampler=Sampler(atoms, max_atoms=8))
    model = LennardJones(epsilon={"Ar": EPSILON}, sigma={"Ar": SIGMA}, cutoff=50.0)
    odd = [*atoms, Atoms("He2", positions=[[0, 0, 0], [3, 0, 0]])]
    engine = dataclasses.replace(relax(), model=model)
    sampler = Sampler(odd, max_atoms=8, unfit="skip")
    with pytest.warns(RuntimeWarning, match="is left out"):
        out = engine.run(sampler=sampler).take()
    assert out.system_id.tolist() == [0, 2]
    assert [(i, name) for i, name, _ in sampler.skipped] == [(1, "system 1 (Ar13)"), (3, "system 3 (He2)")]
    assert "max_atoms is 8" in sampler.skipped[0][2]
    assert "He" in sampler.skipped[1][2]


@pytest.mark.cheap_xla
def test_a_system_that_fails_leaves_and_the_others_go_on():
    atoms = structures()
    atoms[3] = Atoms("Ar9", positions=np.zeros((9, 3)))
    with pytest.warns(RuntimeWarning, match=r"system 3 \(Ar9\) failed"):
        out = relax().run(sampler=few(atoms)).take()
    assert np.flatnonzero(out.failed).tolist() == [3]
    wanted = relax().run(Batch.from_ase(structures())).take()
    np.testing.assert_array_equal(out.energy[~out.failed], wanted.energy[~out.failed])


@pytest.mark.cheap_xla
def test_extras_go_along():
    atoms = structures(9)
    for i, a in enumerate(atoms):
        a.info["charge_guess"] = float(i)
        a.set_array("site", np.arange(len(a)) + i)
        a.info["label"] = f"number {i}"
    out = relax().run(sampler=Sampler(atoms, max_systems=2, window=1)).to_ase()
    for i, a in enumerate(out):
        assert (a.info["charge_guess"], a.info["label"]) == (float(i), f"number {i}")
        np.testing.assert_array_equal(a.arrays["site"], np.arange(len(a)) + i)


def test_wrong_use_is_refused():
    with pytest.raises(
        ValueError, match="policy must be one of first come, best fit, largest first, not 'fifo'"
    ):
        Sampler([], policy="fifo")
    with pytest.raises(ValueError, match="max_systems must be a positive int, not 0"):
        Sampler([], max_systems=0)
    with pytest.raises(TypeError, match="source of Sampler is an iterable of structures"):
        Sampler(cluster())
    with pytest.raises(ValueError, match=r"nowhere\.xyz does not exist"):
        Sampler("nowhere.xyz")
    with pytest.raises(ValueError, match="holds no systems"):
        relax().run(sampler=Sampler([]))
    with pytest.raises(TypeError, match="entry 1 is a int"):
        relax().run(sampler=Sampler([cluster(), 3]))
    with pytest.raises(TypeError, match="run takes a batch, or a sampler"):
        relax().run()
    with pytest.raises(ValueError, match=r"NVTLangevin\.temperature has one value per system"):
        langevin(temperature=[10.0, 20.0]).run(sampler=Sampler(structures(2)))
    tempered = langevin(hooks=[ReplicaExchangeHook(temperatures=[10.0, 20.0])])
    with pytest.raises(ValueError, match="ReplicaExchangeHook relates systems of a batch to one another"):
        tempered.run(sampler=Sampler(structures(2)))
    with pytest.raises(ValueError, match="NVE has no n_steps"):
        NVE(model=MODEL, dt=1.0).run(sampler=Sampler(structures(2)))


@pytest.mark.long
def test_ten_thousand_systems_through_64_places():
    """Each exactly once, in flat host memory."""
    n, ids, held = 10_000, [], []

    class Ids(HostMemory):
        def write(self, batch, mask=None):
            ids.extend(batch.take(mask).system_id.tolist())
            held.append((len(ids), psutil.Process().memory_info().rss))

    engine = FIRE(model=MODEL, n_steps=5, hooks=[ConvergenceHook.from_fmax(0.05)])
    source = (cluster(i, 2 + i % 3, 0.1) for i in range(n))
    engine.run(sampler=Sampler(source, max_systems=64), sink=Ids())
    assert sorted(ids) == list(range(n))
    early = max(rss for done, rss in held if 2000 < done < 4000)
    late = max(rss for done, rss in held if done > 8000)
    assert late - early < 20e6, "a Batch of what passed in between would be 10 MB, with its names 40"


@pytest.mark.cheap_xla
def test_the_doors():
    """relax_all and integrate_all are the engine, the sampler and the hook that one would write."""
    atoms = structures()
    relaxed = relax_all(MODEL, atoms, fmax=0.01, n_steps=300, max_systems=4, max_atoms=40)
    same(relaxed, relax().run(Batch.from_ase(atoms)))
    moved = integrate_all(MODEL, atoms, n_steps=10, ensemble="nve", temperature=20.0, dt=2.0, max_systems=4)
    batch = initialize_velocities(Batch.from_ase(atoms), 20.0)
    same(moved, NVE(model=MODEL, dt=2.0, n_steps=10).run(batch))
    # Who moves already keeps its velocities.
    for a in atoms[::2]:
        a.set_velocities(np.ones((len(a), 3)))
    kept = draw_velocities(20.0, None)(Batch.from_ase(atoms)).to_ase()
    np.testing.assert_allclose(kept[2].get_velocities(), 1.0)
    assert (kept[1].get_velocities() != 0).all()
    with pytest.raises(ValueError, match=r"ensemble is nve, .*, not 'npx'"):
        integrate_all(MODEL, atoms, n_steps=1, ensemble="npx")
    with pytest.raises(ValueError, match="ensemble 'npt' needs a pressure"):
        integrate_all(MODEL, atoms, n_steps=1, ensemble="npt", temperature=1.0)
    with pytest.raises(TypeError, match="ensemble 'nvt' has no barostat_time"):
        integrate_all(MODEL, atoms, n_steps=1, temperature=1.0, parameters={"barostat_time": 1.0})
    with pytest.raises(ValueError, match="fmax must be positive"):
        relax_all(MODEL, atoms, fmax=-1.0)


def test_crystals_with_their_cells():
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=7.0)
    atoms = [crystal(i, 1, 0.05) for i in range(3)]
    out = relax_all(model, atoms, relax_cell=True, fmax=0.01, smax=1e-4, max_systems=2).take()
    assert out.converged.all()
    assert np.abs(out.stress).max() <= 1e-4
    odd = [*atoms, cluster(0, 4)]
    with pytest.raises(ValueError, match=r"system 3 \(Ar4\) is not periodic in all directions"):
        relax_all(model, odd, relax_cell=True, max_systems=2)


@pytest.mark.cheap_xla
def test_what_is_skipped_does_not_come_out():
    out = relax().run(sampler=few(structures(), skip={0, 3, *range(7, 17)})).take()
    assert out.system_id.tolist() == [1, 2, 4, 5, 6]
