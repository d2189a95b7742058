"""Engines: the laws of a run."""

import dataclasses
import warnings
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones as ASELennardJones
from ase.constraints import FixAtoms
from ase.optimize import FIRE as ASEFIRE
from conftest import EPSILON, SIGMA, cluster, crystal

from alchemi_jax import Batch
from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, DynamicsStage
from alchemi_jax.dynamics.driver import Interrupted
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.neighbors import ListSizes, allocation
from alchemi_jax.systems.observables import kinetic_energy, momentum
from alchemi_jax.units import ASE_TIME


def bits(batch):
    """Everything in a batch, for comparison to the last bit."""
    return [np.asarray(x) for x in jax.tree.leaves(batch.take())]


def same(a, b):
    for x, y in zip(bits(a), bits(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def relaxation(lj):
    return FIRE(model=lj, dt=1.0, n_steps=300, hooks=[ConvergenceHook.from_fmax(1e-3)])


@pytest.fixture(scope="module")
def batch(clusters):
    return Batch.from_ase(clusters)


@pytest.fixture(scope="module")
def relaxed(relaxation, batch):
    return relaxation.run(batch)


# -- FIRE ------------------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_fire_walks_the_path_of_ase(lj):
    """From the same start with the same constants: step for step; clusters, crystals and fixed atoms."""
    structures = [cluster(0), cluster(1, 9), crystal(0, 2, 0.2), crystal(3, 1, 0.2)]
    structures += [cluster(2), crystal(1, 1, 0.2)]
    for atoms in structures[4:]:
        atoms.set_constraint(FixAtoms(indices=[0, 3]))
    engine = FIRE(model=lj, dt=0.1 * ASE_TIME, dt_max=1.0 * ASE_TIME)
    state = engine.init(Batch.from_ase(structures))
    step = eqx.filter_jit(lambda state: engine.step(state))
    state = state.replace(batch=state.batch)
    path = []
    for _ in range(50):
        state = step(state)
        path.append(np.asarray(state.batch.positions))
    offset = 0
    for atoms in structures:
        atoms.calc = ASELennardJones(epsilon=EPSILON, sigma=SIGMA, rc=8.5)
        theirs = []
        optimizer = ASEFIRE(atoms, logfile=None)
        optimizer.attach(lambda atoms=atoms, theirs=theirs: theirs.append(atoms.positions.copy()))
        optimizer.run(fmax=1e-12, steps=50)
        ours = np.array(path)[:, offset : offset + len(atoms)]
        np.testing.assert_allclose(ours[: len(theirs) - 1], theirs[1:], atol=1e-8, rtol=0)
        assert len(theirs) == 51
        offset += len(atoms)


def test_a_relaxation_ends_in_a_minimum(relaxed):
    assert relaxed.converged[: relaxed.num_systems].all()
    assert not relaxed.failed.any()
    assert (relaxed.status[: relaxed.num_systems] == 1).all()
    for atoms in relaxed.to_ase():
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 1e-3
        energy = atoms.get_potential_energy()
        atoms.calc = ASELennardJones(epsilon=EPSILON, sigma=SIGMA, rc=8.5)
        shift = 4 * EPSILON * ((SIGMA / 8.5) ** 12 - (SIGMA / 8.5) ** 6)
        pairs = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
        pairs = (pairs[np.triu_indices(len(atoms), 1)] < 8.5).sum()
        np.testing.assert_allclose(energy, atoms.get_potential_energy() + pairs * shift, rtol=1e-9)


# -- systems do not know of one another ------------------------------------------------------------


@pytest.mark.cheap_xla
def test_alone_equals_batched(relaxation, relaxed, clusters):
    """Energy to 1e-6 eV, and the same number of steps."""
    for i, atoms in enumerate(clusters):
        alone = relaxation.run(Batch.from_ase(atoms))
        assert abs(float(alone.energy[0] - relaxed.energy[i])) < 1e-6
        assert int(alone.steps_taken[0]) == int(relaxed.steps_taken[i])


def test_a_crystal_alone_equals_batched(lj):
    """With images, rebuilds and mates of other sizes."""
    structures = [crystal(0, 2, 0.3), cluster(0), crystal(1, 1, 0.3), crystal(2, 3, 0.3)]
    engine = FIRE(model=lj, dt=1.0, n_steps=40)
    together = engine.run(Batch.from_ase(structures))
    offset = 0
    for i, atoms in enumerate(structures):
        alone = engine.run(Batch.from_ase(atoms))
        assert abs(float(alone.energy[0] - together.energy[i])) < 1e-6
        n = len(atoms)
        np.testing.assert_allclose(alone.positions[:n], together.positions[offset : offset + n], atol=1e-6)
        offset += n


def test_finished_systems_do_not_move_by_one_bit(relaxation, batch):
    memory = HostMemory()
    engine = dataclasses.replace(
        relaxation, hooks=[ConvergenceHook.from_fmax(1e-3), SnapshotHook(memory, frequency=7)]
    )
    final = engine.run(batch).take()
    frames = memory._batches
    assert len(frames) > 4
    seen = 0
    for system in range(final.num_systems):
        rows = slice(final.first_atom[system], final.first_atom[system] + final.atoms_per_system[system])
        for frame in frames:
            if frame.status[system] == 1:
                seen += 1
                for name in ("positions", "velocities", "forces"):
                    np.testing.assert_array_equal(getattr(frame, name)[rows], getattr(final, name)[rows])
                assert frame.energy[system] == final.energy[system]
                assert frame.steps_taken[system] == final.steps_taken[system]
    assert seen > 8


@pytest.mark.cheap_xla
def test_padding_does_not_matter(relaxation, clusters, relaxed):
    roomy = Batch.from_ase(clusters, atom_capacity=200, system_capacity=13)
    again = relaxation.run(roomy)
    np.testing.assert_allclose(again.take().energy, relaxed.take().energy, atol=1e-9)
    np.testing.assert_array_equal(again.take().steps_taken, relaxed.take().steps_taken)


def test_a_failed_system_leaves_the_others_alone(relaxation, clusters, relaxed):
    """Two atoms at one place: reported by name, not fatal; nobody else's bits change."""
    broken = Atoms("Ar13", positions=np.repeat([[0.0, 0, 0], [0, 0, 4]], [2, 11], axis=0))
    broken.positions[2:] += np.arange(11)[:, None] * [4.0, 0, 0]
    # Capacities as in the other tests.
    structures = [*clusters[:-1], broken]
    with pytest.warns(RuntimeWarning, match=r"system 7 \(Ar13\) failed before the first step"):
        ours = relaxation.run(Batch.from_ase(structures)).take()
    theirs = relaxation.run(Batch.from_ase([*clusters[:-1], cluster(9)])).take()
    assert ours.failed.tolist() == [False] * 7 + [True]
    assert not ours.converged[7]
    assert ours.status[7] == 1
    n = ours.first_atom[7]
    np.testing.assert_array_equal(ours.positions[:n], theirs.positions[:n])
    np.testing.assert_array_equal(ours.positions[n:], broken.positions)


def test_a_system_that_fails_on_the_way_stays_in_its_last_finite_state(lj):
    """An absurd time step; the warning names system and step."""
    hot = cluster(0)
    hot.set_velocities(np.random.default_rng(0).normal(0, 1e-3, (13, 3)))
    engine = NVE(model=lj, dt=jnp.array([1.0, 1e200]), n_steps=5)
    with pytest.warns(RuntimeWarning, match=r"system 1 \(Ar13\) failed in step [01]"):
        out = engine.run(Batch.from_ase([hot, hot])).take()
    assert out.failed.tolist() == [False, True]
    assert np.isfinite(out.positions).all()
    assert np.isfinite(out.energy).all()
    assert out.steps_taken[0] == 5
    assert out.steps_taken[1] < 5


# -- n = k + (n - k), observers, budgets -----------------------------------------------------------


@pytest.mark.parametrize("structures", [pytest.param("clusters", marks=pytest.mark.cheap_xla), "crystals"])
def test_n_steps_are_k_and_then_the_rest(lj, structures):
    atoms = [cluster(i) for i in range(3)] if structures == "clusters" else [crystal(i) for i in range(2)]
    for a in atoms:
        a.set_velocities(np.random.default_rng(1).normal(0, 2e-2, (len(a), 3)))
    engine = NVE(model=lj, dt=4.0)
    start = engine.init(Batch.from_ase(atoms))
    whole = engine.advance(start, 60)
    parts = start
    for k in (1, 22, 37):
        parts = engine.advance(parts, k)
    assert int(parts.step_count) == int(whole.step_count) == 60
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    if structures == "crystals":
        assert int(whole.neighbors.builds) > 2


class Silent:
    """A host hook that looks and does nothing."""

    def __init__(self, stage, frequency=1):
        self.stage, self.frequency, self.seen = stage, frequency, []

    def __call__(self, ctx, stage):
        self.seen.append(ctx.step_count)


def test_observers_change_no_bit(relaxation, batch, relaxed, tmp_path):
    """Host and recording hooks at the boundaries of steps."""
    watched = dataclasses.replace(
        relaxation,
        hooks=[
            ConvergenceHook.from_fmax(1e-3),
            Silent(DynamicsStage.BEFORE_STEP, 5),
            Silent(DynamicsStage.AFTER_STEP, 3),
            Silent(DynamicsStage.ON_CONVERGE),
            LoggingHook(log_path=tmp_path / "log.csv"),
            SnapshotHook(HostMemory(), 10),
            ConvergedSnapshotHook(HostMemory()),
        ],
    )
    same(watched.run(batch), relaxed)


@pytest.mark.parametrize("stage", [s for s in DynamicsStage if s is not DynamicsStage.ON_CONVERGE])
def test_host_hooks_fire_at_0_f_2f(harmonic, unwatched, stage):
    hooks = [Silent(stage, frequency) for frequency in (3, 10)]
    out = NVE(model=HarmonicModel(), dt=1.0, n_steps=20, hooks=hooks).run(harmonic)
    for hook in hooks:
        assert hook.seen == list(range(0, 20, hook.frequency))
    np.testing.assert_allclose(out.take().positions, unwatched, rtol=1e-12, atol=1e-14)


@pytest.fixture(scope="module")
def harmonic():
    return Batch.from_ase([cluster(0, 3), cluster(1, 2)])


@pytest.fixture(scope="module")
def unwatched(harmonic):
    return NVE(model=HarmonicModel(), dt=1.0, n_steps=20).run(harmonic).take().positions


def test_on_converge_names_exactly_the_newly_converged(relaxation, batch):
    """Each once, in the step in which it converged."""
    seen = {}

    class Watch:
        stage, frequency = DynamicsStage.ON_CONVERGE, 1

        def __call__(self, ctx, stage):
            for system in np.flatnonzero(ctx.converged_mask):
                assert system not in seen
                seen[int(system)] = ctx.step_count
                assert ctx.batch.converged[system]

    hooks = [ConvergenceHook.from_fmax(1e-3), Watch()]
    out = dataclasses.replace(relaxation, hooks=hooks).run(batch).take()
    assert [seen[i] + 1 for i in range(out.num_systems)] == out.steps_taken.tolist()


def test_expired_systems_are_not_converged(relaxation, batch, relaxed):
    memory = HostMemory()
    hooks = [ConvergenceHook.from_fmax(1e-3), ConvergedSnapshotHook(memory)]
    budget = int(np.median(relaxed.take().steps_taken))
    out = dataclasses.replace(relaxation, hooks=hooks).run(batch, budget).take()
    assert (out.status == 1).all()
    assert 0 < out.converged.sum() < out.num_systems
    assert (out.steps_taken[~out.converged] == budget).all()
    assert len(memory) == out.converged.sum()
    written = memory.read().take()
    for i, system in enumerate(written.system_id):
        assert written.energy[i] == out.energy[system]


def test_budgets_alone_finish_a_run(harmonic):
    out = NVE(model=HarmonicModel(), dt=1.0, n_steps=7).run(harmonic).take()
    assert (out.status == 1).all()
    assert (out.steps_taken == 7).all()
    assert not out.converged.any()
    with pytest.raises(ValueError, match="NVE has no n_steps"):
        NVE(model=HarmonicModel(), dt=1.0).run(harmonic)


def test_a_relaxed_batch_goes_straight_into_dynamics(relaxed, lj):
    out = NVE(model=lj, dt=1.0, n_steps=3).run(relaxed).take()
    assert (out.steps_taken == 3).all()
    assert not out.converged.any()


# -- neighbor lists --------------------------------------------------------------------------------


# Compiled as users compile in `test_overflow_in_a_segment_is_replayed`.
@pytest.mark.cheap_xla
def test_overflow_is_replayed_without_a_trace(lj, monkeypatch):
    """A run with lists that are far too small at first, and overflow in the middle, is the same run."""
    structures = [crystal(0, 2), cluster(0)]
    # A gas that condenses: its atoms get more neighbors on the way.
    spread = cluster(1)
    spread.positions *= 1.9
    structures.append(spread)
    batch = Batch.from_ase(structures)
    rows = []

    def run(sizes):
        memory = HostMemory()
        engine = FIRE(model=lj, dt=2.0, n_steps=60, hooks=[SnapshotHook(memory, 20)])
        if sizes is not None:
            monkeypatch.setattr(allocation, "guess_sizes", lambda *args, **kwargs: sizes)
        state = engine.init(batch)
        first = state.neighbors.sizes
        out = engine.advance(state, 60)
        rows.append(len(memory))
        return out, first

    plain, _ = run(None)
    grown, first = run(ListSizes(neighbors=3, images=5, candidates=32, groups=0))
    assert first.neighbors > 3
    assert not grown.overflow
    assert rows == [9, 9]
    same(plain.batch, grown.batch)


def test_overflow_in_a_segment_is_replayed(lj):
    """Capacities that just hold the start and no more: two clusters fly into each other."""
    pair = np.concatenate([cluster(0, 4).positions - [11, 0, 0], cluster(1, 4).positions - [-11, 0, 0]])
    # So many atoms that their list does not hold all pairs.
    far = 300 + 20.0 * np.arange(84).reshape(28, 3)
    atoms = Atoms("Ar36", positions=np.concatenate([pair, far]))
    velocities = np.zeros((36, 3))
    velocities[:4, 0], velocities[4:8, 0] = 0.01 * ASE_TIME, -0.01 * ASE_TIME
    atoms.set_velocities(velocities)
    engine = NVE(model=lj, dt=4.0, n_steps=300)
    state = engine.init(Batch.from_ase(atoms))
    plain = engine.advance(state, 300)
    needs = np.asarray(state.neighbors.needs)
    tight = ListSizes(int(needs[0]), 1, 64, 0)
    squeezed = state.replace(neighbors=nl.resized(state.neighbors, tight))
    assert not squeezed.overflow
    out = engine.advance(squeezed, 300)
    assert out.neighbors.sizes.neighbors > tight.neighbors
    same(plain.batch, out.batch)


@pytest.mark.cheap_xla
def test_overflow_in_a_loop_of_the_user_shows(lj):
    """There nothing can grow: the state says so, and there are no numbers."""
    state = NVE(model=lj, dt=4.0).init(Batch.from_ase(cluster(0)))
    sizes = dataclasses.replace(state.neighbors.sizes, neighbors=4)
    few = dataclasses.replace(state.neighbors, sizes=sizes, index=state.neighbors.index[:4])
    few = dataclasses.replace(few, complete=jnp.zeros_like(few.complete))
    hot = state.batch.replace(positions=1.5 * state.batch.positions, meta=None)
    lost = eqx.filter_jit(lambda s: NVE(model=lj, dt=4.0).loop(s, 3))(state.replace(batch=hot, neighbors=few))
    assert lost.overflow
    assert np.isnan(np.asarray(lost.batch.energy)).all()


# -- NVE -------------------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_energy_error_falls_as_dt_squared(lj):
    """Of a fixed physical time, over four time steps: exponent 2.0 within 0.1."""
    atoms = cluster(0, spread=0.05)
    atoms.set_velocities(np.random.default_rng(3).normal(0, 1.5e-3 * ASE_TIME, (13, 3)))
    dts = np.array([2.0, 4.0, 8.0, 16.0])
    batch = Batch.from_ase([atoms] * len(dts))
    engine = NVE(model=lj, dt=jnp.asarray(dts), n_steps=10_000)
    state = engine.init(batch)
    total = state.batch.energy + kinetic_energy(state.batch)
    worst = jnp.zeros(len(dts))
    for _ in range(100):
        state = engine.advance(state, 1)
        now = state.batch.energy + kinetic_energy(state.batch)
        # The amplitude over the same number of oscillations needs the same physical time.
        time = dts * int(state.step_count)
        worst = jnp.where(time <= 200.0, jnp.maximum(worst, jnp.abs(now - total)), worst)
    slope = np.polyfit(np.log(dts), np.log(np.asarray(worst)), 1)[0]
    assert abs(slope - 2.0) < 0.1, (slope, worst)


def test_time_reversal_and_momentum(lj):
    atoms = cluster(0, spread=0.05)
    rng = np.random.default_rng(4)
    atoms.set_velocities(rng.normal(0, 1e-2, (13, 3)))
    engine = NVE(model=lj, dt=2.0, n_steps=300)
    batch = Batch.from_ase(atoms)
    out = engine.run(batch)
    np.testing.assert_allclose(momentum(out), momentum(batch), atol=1e-12)
    back = engine.run(out.replace(velocities=-out.velocities))
    np.testing.assert_allclose(back.take().positions, atoms.positions, atol=1e-8)


@pytest.mark.cheap_xla
def test_fixed_atoms_stay_and_the_others_feel_them(lj):
    atoms = cluster(0)
    atoms.set_velocities(np.full((13, 3), 0.01))
    atoms.set_constraint(FixAtoms(indices=[1, 2]))
    out = NVE(model=lj, dt=2.0, n_steps=20).run(Batch.from_ase(atoms)).take()
    np.testing.assert_array_equal(out.positions[1:3], atoms.positions[1:3])
    assert not out.velocities[1:3].any()
    assert np.abs(out.positions - atoms.positions)[3:].min(1).max() > 1e-4


def test_stress_at_the_end_of_a_run(lj):
    """Evaluated once, where periodic; equal to ASE's."""
    structures = [crystal(0), cluster(0)]
    out = FIRE(model=lj, dt=1.0, n_steps=5).run(Batch.from_ase(structures))
    solid, free = out.to_ase()
    stress = solid.get_stress()
    solid.calc = ASELennardJones(epsilon=EPSILON, sigma=SIGMA, rc=8.5)
    np.testing.assert_allclose(stress, solid.get_stress(), atol=1e-10)
    assert "stress" not in free.calc.results


# -- compiled once ---------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_nothing_recompiles_when_numbers_change(compilations, lj, clusters, tmp_path):
    def run(dt, n_steps, threshold, log, structures, sigma):
        hooks = [
            ConvergenceHook.from_fmax(threshold),
            LoggingHook(log_path=tmp_path / log, frequency=5),
            SnapshotHook(HostMemory(), frequency=50),
        ]
        model = LennardJones(epsilon=EPSILON, sigma=sigma, cutoff=8.5)
        return FIRE(model=model, dt=dt, n_steps=n_steps, hooks=hooks).run(Batch.from_ase(structures))

    with compilations() as count:
        run(1.0, 30, 0.05, "a.csv", clusters, 3.4)
    assert count, "the counter counts"
    with compilations() as count:
        run(0.5, 40, 0.01, "b.csv", clusters[::-1], 3.41)
        run(0.7, 13, 0.2, "c.csv", clusters[::-1], 3.3)
    assert count == []


# -- transforms ------------------------------------------------------------------------------------


def test_loop_under_jit_and_vmap(lj):
    """vmap over a parameter of the engine equals a Python loop."""
    atoms = cluster(0)
    atoms.set_velocities(np.full((13, 3), 1e-2) * np.random.default_rng(0).normal(size=(13, 3)))
    state = NVE(model=lj, dt=1.0).init(Batch.from_ase([atoms, crystal(0, 1)]))
    state = state.replace(batch=state.batch)

    def final(dt):
        return NVE(model=lj, dt=dt, n_steps=25).loop(state).batch

    dts = jnp.array([1.0, 5.0, 20.0])
    mapped = jax.jit(jax.vmap(final))(dts)
    single = jax.jit(final)
    for i, dt in enumerate(dts):
        alone = single(dt)
        np.testing.assert_allclose(mapped.positions[i], alone.positions, atol=1e-9)
        np.testing.assert_allclose(mapped.energy[i], alone.energy, rtol=1e-9)


def test_derivatives_go_through_steps(lj):
    """Of the energy after four steps, by the potential's sigma: backwards, forwards, through the loop."""
    start = NVE(model=lj, dt=2.0).init(Batch.from_ase([cluster(0, 4), crystal(0, 1)]))
    start = start.replace(batch=start.batch)

    def engine(sigma):
        return NVE(model=LennardJones(epsilon=EPSILON, sigma=sigma, cutoff=8.5), dt=2.0)

    def by_steps(sigma):
        state, _ = jax.lax.scan(lambda s, _: (engine(sigma).step(s), None), start, length=4)
        return state.batch.energy.sum()

    def by_loop(sigma):
        return engine(sigma).loop(start, 4).batch.energy.sum()

    h, value = 1e-5, jax.jit(by_loop)
    difference = (value(3.4 + h) - value(3.4 - h)) / (2 * h)
    for slope in (jax.grad(by_steps), jax.jacfwd(by_steps), jax.jacfwd(by_loop)):
        np.testing.assert_allclose(jax.jit(slope)(3.4), difference, rtol=1e-7)


def test_loop_equals_run(relaxation, batch, relaxed):
    """Bit for bit in a jit with the option that `run` gives XLA: with vectors of another width, which a jit
    without it has on some machines, sums are made in another order."""
    state = relaxation.init(batch)
    state = state.replace(batch=state.batch)
    jit = partial(eqx.filter_jit, compiler_options={"xla_cpu_prefer_vector_width": 512})
    out = jit(lambda engine, s: engine.loop(s))(relaxation, state)
    same(out.batch.replace(meta=relaxed.meta), relaxed)


def test_rows_come_back_from_a_mapped_loop(lj, tmp_path):
    log = LoggingHook(log_path=tmp_path / "never.csv", frequency=2)
    state = NVE(model=lj, dt=1.0, hooks=[log]).init(Batch.from_ase(cluster(0)))
    state = state.replace(batch=state.batch)
    out = jax.vmap(lambda dt: NVE(model=lj, dt=dt, hooks=[log]).loop(state, 9))(jnp.array([1.0, 2.0]))
    assert out.records[0].count.tolist() == [5, 5]
    assert out.records[0].rows["step"][:, :5].tolist() == [[0, 2, 4, 6, 8]] * 2


# -- refusals --------------------------------------------------------------------------------------


def test_refusals(lj, harmonic):
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=3)
    with pytest.raises(ValueError, match=r"NVE\.init chooses the capacities"):
        jax.jit(lambda b: engine.init(b).batch.energy)(harmonic)
    with pytest.raises(ValueError, match="dt must be positive, not -1"):
        NVE(model=lj, dt=-1.0)
    with pytest.raises(ValueError, match=r"n_steps must be a positive int, not 2\.5"):
        NVE(model=lj, dt=1.0, n_steps=2.5)
    with pytest.raises(ValueError, match=r"NVE\.dt has 3 values.*2 systems"):
        NVE(model=HarmonicModel(), dt=jnp.ones(3), n_steps=1).run(harmonic)


def test_an_engine_reads_like_a_methods_section(lj):
    engine = FIRE(model=lj, dt=1.5, n_steps=10, hooks=[ConvergenceHook.from_fmax(0.01)])
    text = repr(engine)
    for part in ("FIRE(", "LennardJones(epsilon=0.0104", "dt=1.5", "n_steps=10", "threshold=0.01"):
        assert part in text


def test_warning_for_a_hook_that_never_fires(lj):
    with pytest.warns(UserWarning, match="waits for ON_CONVERGE, which never comes in this FIRE"):
        FIRE(model=lj, hooks=[ConvergedSnapshotHook(HostMemory())])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FIRE(model=lj, hooks=[ConvergenceHook(), ConvergedSnapshotHook(HostMemory())])


@pytest.mark.cheap_xla
def test_an_interrupted_run_gives_the_state_so_far(lj, clusters, monkeypatch):
    """Going on from it is the run that was not interrupted; in a notebook it is returned."""
    batch = Batch.from_ase(clusters)

    class Stop:
        stage, frequency = DynamicsStage.AFTER_STEP, 1

        def __call__(self, ctx, stage):
            if ctx.step_count == 6:
                raise KeyboardInterrupt

    plain = NVE(model=lj, dt=1.0, n_steps=10)
    stopping = plain.with_hooks(Stop())
    with pytest.raises(Interrupted, match=r"NVE was interrupted after step 7; the state so far") as e:
        stopping.run(batch)
    state = e.value.state
    assert int(state.step_count) == 7
    assert state.batch.meta is batch.meta
    rest = plain.advance(state, 3)
    np.testing.assert_array_equal(rest.batch.positions, plain.advance(plain.init(batch), 10).batch.positions)
    monkeypatch.setattr("builtins.__IPYTHON__", True, raising=False)
    with pytest.warns(RuntimeWarning, match="NVE was interrupted after step 7; this is the state so far"):
        out = stopping.run(batch)
    assert out.take().steps_taken.tolist() == [7] * len(clusters)
