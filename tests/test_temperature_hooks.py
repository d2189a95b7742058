"""Temperature schedules and replica exchange: what they set, and that the ensemble stays what it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import cluster
from scipy import stats

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import NVE, DynamicsStage, NVTLangevin
from alchemi_jax.dynamics.hooks import ObservableHook, ReplicaExchangeHook, TemperatureScheduleHook
from alchemi_jax.hooks import HookContext
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import kinetic_energy
from alchemi_jax.units import ACCELERATION, KB


MODEL = HarmonicModel(k=0.5)
MASS = 39.948
#: Of each statistical test here, at fixed seeds; all together stay below 1e-4.
FALSE_ALARM = 1e-6


def wells(n):
    """n systems of one atom, each in the well of HarmonicModel."""
    return Batch.from_data_list([AtomicData.from_ase(Atoms("Ar", positions=[[0.1, 0, 0]]))] * n)


def thermostat(**kwargs):
    given = {"model": MODEL, "dt": 5.0, "temperature": 50.0, "friction": 0.02}
    return NVTLangevin(**{**given, **kwargs})


# -- schedules -------------------------------------------------------------------------------------


def test_a_schedule_is_a_function_of_the_steps_of_each_system():
    """A ramp per system, held at its end; a function of one's own; and in a pipeline from arrival on."""
    batch = wells(3)
    seen = ObservableHook({"t": lambda ctx: ctx.batch.target_temperature})
    ramp = TemperatureScheduleHook.ramp(jnp.array([10.0, 20.0, 30.0]), 90.0, 8)
    thermostat(n_steps=12, hooks=[ramp, seen]).run(batch)
    steps = np.arange(12)[:, None]
    start = np.array([10.0, 20.0, 30.0])
    expected = start + (90 - start) * np.minimum(steps / 8, 1)
    np.testing.assert_allclose(seen.table["t"], expected, rtol=1e-12)

    seen.clear()
    wave = TemperatureScheduleHook(lambda step: 100 + 50 * jnp.cos(step / 3))
    relax = NVE(model=MODEL, dt=1.0, n_steps=5)
    (relax + thermostat(n_steps=6, hooks=[wave, seen])).run(batch)
    assert seen.table["step"].tolist() == list(range(5, 11))
    expected = 100 + 50 * np.cos(np.arange(6) / 3)
    np.testing.assert_allclose(seen.table["t"], np.tile(expected[:, None], 3), rtol=1e-12)


@pytest.mark.cheap_xla
def test_the_thermostat_follows(compilations):
    """With a friction that renews all velocities in each step the temperature is that of the schedule;
    other numbers do not compile anew."""
    atoms = 1500
    batch = Batch.from_ase([Atoms(f"Ar{atoms}", positions=np.zeros((atoms, 3)))] * 2)

    def run(end):
        kinetic = ObservableHook({"k": kinetic_energy})
        ramp = TemperatureScheduleHook.ramp(jnp.array([100.0, 300.0]), end, 10)
        # A time step so short that the kick after the noise does nothing.
        thermostat(dt=1e-3, friction=1e5, n_steps=14, hooks=[ramp, kinetic]).run(batch)
        return kinetic.table["k"] / (1.5 * atoms * KB)

    found = run(600.0)
    with compilations() as count:
        run(400.0)
    assert count == []
    start = np.array([100.0, 300.0])
    expected = start + (600 - start) * np.minimum(np.arange(14)[:, None] / 10, 1)
    # Kinetic energies are chi-squared with 3N degrees of freedom.
    limit = stats.norm.isf(FALSE_ALARM / found.size / 2) * np.sqrt(2 / (3 * atoms))
    assert np.abs(found / expected - 1).max() < limit
    assert np.abs(found / expected - 1).max() > limit / 30, "it is noise, after all"


def test_schedules_are_refused_where_nothing_follows_them():
    ramp = TemperatureScheduleHook.ramp(10.0, 90.0, 8)
    with pytest.raises(TypeError, match="TemperatureScheduleHook sets the temperature, but NVE keeps none"):
        NVE(model=MODEL, dt=1.0, hooks=[ramp])
    relax = NVE(model=MODEL, dt=1.0, n_steps=5)
    assert (relax + thermostat(n_steps=1)).with_hooks(ramp).n_stages == 2
    with pytest.raises(TypeError, match="but FusedStage keeps none"):
        (relax + relax).with_hooks(ramp)
    with pytest.raises(ValueError, match="start must be zero or positive"):
        TemperatureScheduleHook.ramp(-1.0, 90.0, 8)
    with pytest.raises(ValueError, match="n_steps must be a positive int"):
        TemperatureScheduleHook.ramp(1.0, 90.0, 0)


# -- replica exchange ------------------------------------------------------------------------------


LADDER = np.array([40.0, 60.0, 90.0, 150.0])


def canonical(ladders, seed, kelvin=LADDER):
    """Ladders of one-atom replicas in wells, drawn from the canonical distribution of their rungs."""
    batch = wells(ladders * len(kelvin))
    n = batch.system_capacity
    t = np.resize(kelvin, n)[:, None]
    rng = np.random.default_rng(seed)
    positions = np.zeros((batch.atom_capacity, 3))
    velocities = np.zeros_like(positions)
    positions[:n] = rng.normal(size=(n, 3)) * np.sqrt(KB * t / float(MODEL.k))
    velocities[:n] = rng.normal(size=(n, 3)) * np.sqrt(KB * t / MASS * ACCELERATION)
    batch = batch.replace(positions=jnp.asarray(positions), velocities=jnp.asarray(velocities), meta=None)
    return batch.replace(energy=MODEL.energy(batch, None))


EXCHANGE = ReplicaExchangeHook(LADDER, every=1)
_exchange = jax.jit(lambda c: EXCHANGE(c, DynamicsStage.BEFORE_STEP))


def exchanged(batch, step):
    return _exchange(
        HookContext(
            batch=batch,
            step_count=jnp.asarray(step),
            active_mask=batch.system_mask,
            memory=EXCHANGE.init(batch),
        )
    )


@pytest.fixture(scope="module")
def many():
    return canonical(1500, 1)


@pytest.mark.parametrize("step", [2, 3])
def test_an_exchange_leaves_the_ensemble_as_it_is(step, many):
    """Detailed balance on a harmonic ladder: energies, potential and kinetic, that are canonical at their
    rungs are canonical after swaps; with either pairing of rungs."""
    batch = many
    after = exchanged(batch, step)
    n, rung = batch.num_systems, np.asarray(after.memory.rung)
    pairs = [(0, 1), (2, 3)] if step == 2 else [(1, 2)]
    assert after.memory.attempted.tolist() == [1500 * ((r, r + 1) in pairs) for r in range(3)]
    potential, kinetic = np.asarray(after.batch.energy), np.asarray(kinetic_energy(after.batch))
    assert np.array_equal(potential, batch.energy)
    np.testing.assert_allclose(after.batch.target_temperature[:n], LADDER[rung[:n]])
    for r, t in enumerate(LADDER):
        mine = np.flatnonzero(rung[:n] == r)
        assert len(mine) == 1500
        for energies in (potential[mine], kinetic[mine]):
            assert stats.kstest(energies, stats.gamma(1.5, scale=KB * t).cdf).pvalue > FALSE_ALARM
    # And as often as Metropolis says.
    energy, beta = np.asarray(batch.energy[:n]).reshape(-1, 4), 1 / (KB * LADDER)
    for a, b in pairs:
        chance = np.minimum(1, np.exp((beta[a] - beta[b]) * (energy[:, a] - energy[:, b])))
        sigma = np.sqrt((chance * (1 - chance)).sum())
        accepted = int(after.memory.accepted[a])
        assert abs(accepted - chance.sum()) < stats.norm.isf(FALSE_ALARM / 2) * sigma
        assert 0 < accepted < 1500


def test_an_exchange_by_hand():
    """Certain swaps: the colder rung holds the higher energy. Each pair is a swap of two, velocities
    follow, finished systems stay out of it."""
    batch = canonical(2, 3)
    energy = jnp.array([9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 9.0, 0.0])
    ctx = exchanged(batch.replace(energy=energy), 2)
    assert ctx.memory.rung.tolist() == [1, 0, 3, 2, 1, 0, 3, 2]
    assert ctx.batch.target_temperature.tolist() == [60, 40, 150, 90, 60, 40, 150, 90]
    factor = np.sqrt(np.array([60, 40, 150, 90] * 2) / np.array([40, 60, 90, 150] * 2))
    np.testing.assert_allclose(ctx.batch.velocities[:8], batch.velocities[:8] * factor[:, None])
    hook = ReplicaExchangeHook(LADDER, every=1)
    busy = jnp.array([True, False, True, True, True, True, True, True])
    held = HookContext(
        batch=batch.replace(energy=energy),
        step_count=jnp.asarray(2),
        active_mask=busy,
        memory=hook.init(batch),
    )
    assert hook(held, DynamicsStage.BEFORE_STEP).memory.rung.tolist() == [0, 1, 3, 2, 1, 0, 3, 2]
    assert exchanged(batch.replace(energy=energy), 0).memory.rung.tolist() == [0, 1, 2, 3] * 2


def test_parallel_tempering_samples_every_temperature():
    """A run with swaps: at each rung the mean energy is 3/2 kT, and every replica wanders."""
    ladders = 300
    batch = wells(4 * ladders)
    seen = ObservableHook(
        {"e": lambda ctx: ctx.batch.energy, "t": lambda ctx: ctx.batch.target_temperature}, frequency=20
    )
    hook = ReplicaExchangeHook(LADDER, every=20)
    engine = thermostat(dt=20.0, n_steps=400, hooks=[hook, seen])
    state = engine.advance(engine.init(batch), 400)
    energy, kelvin = seen.table["e"][5:], seen.table["t"][5:]
    for t in LADDER:
        values = (energy / (1.5 * KB * t))[np.isclose(kelvin, t)]
        # Ladders are independent; frames 400 fs apart nearly so: their number is halved for safety.
        sigma = np.sqrt(2 / 3 / (len(values) / 2))
        assert abs(values.mean() - 1) < stats.norm.isf(FALSE_ALARM / 2) * sigma
    assert (np.asarray(state.memory[0].accepted) > 100).all()
    wandered = [len(np.unique(kelvin[:, i])) for i in range(100)]
    assert min(wandered) >= 2


@pytest.mark.cheap_xla
def test_exchanges_go_on_and_do_not_depend_on_other_ladders():
    two, one = wells(8), wells(4)
    engine = thermostat(n_steps=30, hooks=[ReplicaExchangeHook(LADDER, every=3, seed=4)])
    whole = engine.advance(engine.init(two), 30)
    parts = engine.advance(engine.advance(engine.init(two), 13), 17)
    for a, b in zip(jax.tree.leaves(whole.memory), jax.tree.leaves(parts.memory), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(whole.batch.positions, parts.batch.positions)
    alone = engine.advance(engine.init(one), 30)
    assert np.array_equal(alone.memory[0].rung[:4], whole.memory[0].rung[:4])
    np.testing.assert_allclose(alone.batch.positions[:4], whole.batch.positions[:4], rtol=1e-12)
    other = dataclasses.replace(engine, hooks=[ReplicaExchangeHook(LADDER, every=3, seed=5)])
    assert not np.array_equal(other.run(two).positions, whole.batch.positions)


def test_replica_exchange_refusals():
    with pytest.raises(ValueError, match="must be a list of at least two"):
        ReplicaExchangeHook([50.0])
    with pytest.raises(ValueError, match="temperatures must be positive"):
        ReplicaExchangeHook([50.0, -1.0])
    with pytest.raises(TypeError, match="ReplicaExchangeHook sets the temperature, but NVE keeps none"):
        NVE(model=MODEL, dt=1.0, hooks=[ReplicaExchangeHook(LADDER)])
    engine = thermostat(hooks=[ReplicaExchangeHook(LADDER)])
    with pytest.raises(ValueError, match="must hold a multiple of 4 systems, not 3"):
        engine.init(wells(3))
    mixed = Batch.from_ase([cluster(i, n) for i, n in enumerate((3, 3, 2, 3))])
    with pytest.raises(ValueError, match=r"system 2 .* are not made of the same atoms"):
        engine.init(mixed)
