"""Every traced hook in every engine: it acts, or it is refused by name; and what it does to the ensemble."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms
from conftest import public

import alchemi_jax.dynamics
import alchemi_jax.dynamics.hooks as hooks
from alchemi_jax import Batch
from alchemi_jax.dynamics import AbstractDynamics, initialize_velocities
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.models import AbstractModel, HarmonicModel
from alchemi_jax.systems.observables import kinetic_energy, volume
from alchemi_jax.systems.segments import sum_by_system
from alchemi_jax.units import GPA, KB


ENGINES = {
    name: value
    for name, value in public(alchemi_jax.dynamics).items()
    if isinstance(value, type)
    and issubclass(value, AbstractDynamics)
    and name not in ("AbstractDynamics", "FusedStage")
}
THERMOSTATS = {"NVTLangevin", "NVTBussi", "NVTNoseHoover", "NPT"}
PRESSURES = {"NPH", "NPT", "FIREVariableCell", "FIRE2VariableCell"}
EVERY = set(ENGINES)


class IdealGas(AbstractModel):
    """Atoms without interaction."""

    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        return 0 * sum_by_system(batch, batch.positions[:, 0])


#: Every traced hook, and the engines in which it acts. In all others it is refused.
VERDICTS = {
    "FreezeAtomsHook": (lambda: hooks.FreezeAtomsHook([0]), EVERY),
    "WrapPeriodicHook": (lambda: hooks.WrapPeriodicHook(), EVERY),
    "ConvergenceHook": (lambda: hooks.ConvergenceHook(), EVERY),
    "MaxForceClampHook": (lambda: hooks.MaxForceClampHook(5.0), EVERY),
    "BiasedPotentialHook": (lambda: hooks.BiasedPotentialHook(lambda b: 0 * b.energy), EVERY),
    "NaNDetectorHook": (lambda: hooks.NaNDetectorHook(), EVERY),
    "UncertaintyHook": (lambda: hooks.UncertaintyHook(0.3), EVERY),
    "GuardHook": (lambda: hooks.GuardHook(lambda b: b.failed, "no reason"), EVERY),
    "EnergyDriftMonitorHook": (lambda: hooks.EnergyDriftMonitorHook(0.1), {"NVE"}),
    "TemperatureScheduleHook": (lambda: hooks.TemperatureScheduleHook.ramp(1.0, 2.0, 9), THERMOSTATS),
    "PressureScheduleHook": (lambda: hooks.PressureScheduleHook.ramp(1.0, 2.0, 9), PRESSURES),
    "ReplicaExchangeHook": (lambda: hooks.ReplicaExchangeHook([50.0, 80.0]), THERMOSTATS),
}


def engine(name, model=None, **fields):
    """An engine of this class, with values for what it cannot be made without."""
    needed = {"dt": 1.0, "temperature": 60.0, "optimizer": optax.sgd(0.1)}
    parameters = inspect.signature(ENGINES[name]).parameters
    empty = inspect.Parameter.empty
    given = {k: v for k, v in needed.items() if k in parameters and parameters[k].default is empty}
    fields = {k: v for k, v in fields.items() if k in parameters}
    return ENGINES[name](**{"model": model or HarmonicModel(), **given, **fields})


def test_the_table_has_every_traced_hook():
    ours = {name for name, h in public(hooks).items() if isinstance(h, type) and issubclass(h, TracedHook)}
    assert set(VERDICTS) == ours
    assert len(ENGINES) >= 14
    assert EVERY > THERMOSTATS | PRESSURES


@pytest.mark.parametrize("hook", VERDICTS)
def test_a_hook_acts_or_is_refused_by_name(hook):
    make, acts = VERDICTS[hook]
    for name in ENGINES:
        if name in acts:
            assert len(engine(name, hooks=[make()]).hooks) == 1
        else:
            with pytest.raises(TypeError, match=rf"{hook}.*\b{name}\b"):
                engine(name, hooks=[make()])


def test_a_drift_without_threshold_is_only_watched():
    for name in ENGINES:
        engine(name, hooks=[hooks.EnergyDriftMonitorHook()])


def test_in_a_pipeline_temperatures_are_swapped_where_all_parts_have_one():
    swap = hooks.ReplicaExchangeHook([50.0, 80.0])
    relax, md = engine("FIRE", n_steps=2), engine("NVTBussi", n_steps=2)
    with pytest.raises(TypeError, match="FIRE, a part of FusedStage, keeps none"):
        (relax + md).with_hooks(swap)
    assert (relax + md.with_hooks(swap)).n_stages == 2
    assert (md + md).with_hooks(swap).n_stages == 2
    with pytest.raises(TypeError, match="both set the temperature"):
        md.with_hooks(swap, hooks.TemperatureScheduleHook.ramp(1.0, 2.0, 9))


def test_replicas_are_copies_of_one_system():
    """Of the same atoms; in the same cell, unless a barostat makes the cell."""
    small, large = (Atoms("Ar2", np.eye(3)[:2], cell=[a] * 3, pbc=True) for a in (5.0, 6.0))
    heavy = small.copy()
    heavy.set_masses([40.0, 50.0])
    swap = hooks.ReplicaExchangeHook([50.0, 80.0])
    md, npt = (engine(name, hooks=[swap]) for name in ("NVTBussi", "NPT"))
    for other, message in ((large, "differ in cell"), (heavy, "differ in masses")):
        with pytest.raises(ValueError, match=message):
            md.init(Batch.from_ase([small, other]))
    swap.check_in(npt, Batch.from_ase([small, large]))
    with pytest.raises(ValueError, match="differ in masses"):
        swap.check_in(npt, Batch.from_ase([small, heavy]))


# -- what hooks do to the ensemble -----------------------------------------------------------------

ATOMS, LADDER, PRESSURE = 24, (100.0, 200.0), 0.02


def gas(systems, kelvin, pressure):
    """Atoms without interaction, in cells of about the volume N kT/P."""
    rng = np.random.default_rng(0)
    side = (ATOMS * KB * np.asarray(kelvin) / (pressure * GPA)) ** (1 / 3)
    sides = np.broadcast_to(side, (systems,))
    return Batch.from_ase(
        [Atoms(f"Ar{ATOMS}", rng.random((ATOMS, 3)) * a, cell=[a] * 3, pbc=True) for a in sides]
    )


def mean_volumes(name, systems=12, n_steps=2500, swaps=True):
    """Volume over N kT/P at each temperature: P by a schedule, and T by exchange of replicas."""
    kelvin = np.tile(LADDER, systems // 2)
    seen = hooks.ObservableHook({"v": volume, "t": lambda ctx: ctx.batch.target_temperature}, frequency=5)
    constant = hooks.PressureScheduleHook(lambda step: PRESSURE + 0 * step)
    given = [constant, seen, *([hooks.ReplicaExchangeHook(LADDER, every=20)] if swaps else [])]
    md = engine(
        name,
        model=IdealGas(),
        dt=8.0,
        temperature=kelvin,
        pressure=3 * PRESSURE,
        thermostat_time=60.0,
        barostat_time=150.0,
        n_steps=n_steps,
        hooks=given,
    )
    md.run(initialize_velocities(gas(systems, kelvin, PRESSURE), kelvin, jax.random.key(3)))
    v = seen.table["v"][80:, :systems]
    t = seen.table["t"][80:, :systems] if swaps else np.broadcast_to(kelvin[None], v.shape)
    return [v[t == k].mean() / (ATOMS * KB * k / (PRESSURE * GPA)) for k in LADDER], t


def test_pressures_by_schedule_and_temperatures_by_exchange():
    """An ideal gas has the volume N kT/P of the pressure that a hook sets and of the rung that it is on.
    Without P V in the swaps it would be off by half."""
    ratios, t = mean_volumes("NPT")
    assert (t[0] != t[-1]).any(), "temperatures were swapped"
    np.testing.assert_allclose(ratios, 1, atol=0.05)


def moments(name, n_steps=3000, hook=None, **fields):
    """Kinetic energy over kT/2 per degree of freedom, and mean square displacements over kT/k, of atoms in
    wells of two stiffnesses: that of the model, and that of a bias; one atom in four is fixed."""
    atoms, systems = 16, 6
    batch = Batch.from_ase([Atoms(f"Ar{atoms}", np.zeros((atoms, 3))) for _ in range(systems)])
    mask = np.arange(batch.atom_capacity) % 4 == 0
    stiff = 0.7

    def bias(b):
        return stiff / 2 * sum_by_system(b, jnp.sum(b.positions[:, :1] ** 2, axis=1))

    def squares(ctx):
        x = ctx.batch.positions**2
        return sum_by_system(ctx.batch, x)

    kelvin = 90.0
    seen = hooks.ObservableHook({"k": kinetic_energy, "x": squares}, frequency=3)
    # The engine's own temperature is another one: the hook's counts.
    schedule = hooks.TemperatureScheduleHook(lambda step: kelvin + 0 * step)
    given = [hooks.FreezeAtomsHook(mask & np.asarray(batch.atom_mask)), hooks.BiasedPotentialHook(bias)]
    fields = {"friction": 0.02, "thermostat_time": 60.0, "dt": 8.0, "temperature": 300.0} | fields
    md = engine(name, model=HarmonicModel(k=0.4), n_steps=n_steps, hooks=[*given, schedule, seen], **fields)
    md.run(initialize_velocities(batch, kelvin, jax.random.key(5)), key=jax.random.key(1))
    free = atoms * 3 // 4
    start = len(seen.table["k"]) // 6
    kinetic = seen.table["k"][start:, :systems].mean() / (1.5 * free * KB * kelvin)
    x = seen.table["x"][start:, :systems].mean((0, 1)) / (free * KB * kelvin)
    return kinetic, x * np.array([0.4 + stiff, 0.4, 0.4])


def test_frozen_atoms_a_bias_and_a_schedule_in_one_ensemble():
    """Free atoms have 3/2 kT each, the frozen ones nothing; the bias makes one axis as stiff as the sum."""
    kinetic, x = moments("NVTLangevin", friction=0.05)
    np.testing.assert_allclose(kinetic, 1, atol=0.03)
    np.testing.assert_allclose(x, 1, atol=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(THERMOSTATS - {"NPT"}))
def test_frozen_atoms_a_bias_and_a_schedule_in_every_thermostat(name):
    kinetic, x = moments(name, n_steps=20_000)
    np.testing.assert_allclose(kinetic, 1, atol=0.02)
    if name == "NVTLangevin":
        # The others act on the sum of all kinetic energies: in wells apart each mode keeps its share.
        np.testing.assert_allclose(x, 1, atol=0.04)


@pytest.mark.long
@pytest.mark.parametrize("swaps", [True, False])
def test_volumes_of_an_ideal_gas_in_every_barostat(swaps):
    ratios, _ = mean_volumes("NPT", systems=24, n_steps=12_000, swaps=swaps)
    np.testing.assert_allclose(ratios, 1, atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(THERMOSTATS - {"NPT"}))
def test_exchange_keeps_the_energies_of_each_rung(name):
    """Of wells at fixed volume: 3/2 kT for the potential energy and for the kinetic one, on every rung."""
    kelvin = np.tile(LADDER, 8)
    batch = Batch.from_ase([Atoms("Ar8", np.random.default_rng(i).normal(0, 0.2, (8, 3))) for i in range(16)])
    seen = hooks.ObservableHook(
        {"e": lambda c: c.batch.energy, "k": kinetic_energy, "t": lambda c: c.batch.target_temperature},
        frequency=3,
    )
    rungs = hooks.ReplicaExchangeHook(LADDER, every=10)
    fields = {"friction": 0.02, "thermostat_time": 60.0, "dt": 8.0, "temperature": kelvin}
    k = 0.5 * np.linspace(1, 2, 3)
    model = _Well(stiff=jnp.asarray(k))
    md = engine(name, model=model, n_steps=15_000, hooks=[rungs, seen], **fields)
    # The center of mass moves from the start, so that all degrees of freedom count: wells do not hold it.
    noise = np.random.default_rng(9).normal(0, 1.5e-3, batch.velocities.shape)
    md.run(batch.replace(velocities=batch.velocities + noise))
    t = seen.table["t"][200:, :16]
    for kt in LADDER:
        for key in ("e", "k"):
            found = seen.table[key][200:, :16][t == kt].mean() / (1.5 * KB * kt)
            np.testing.assert_allclose(found, 8, rtol=0.06)


class _Well(AbstractModel):
    """Wells with another stiffness along each axis."""

    stiff: jax.Array
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        return sum_by_system(batch, jnp.sum(self.stiff[None] * batch.positions**2, axis=1)) / 2


# -- convergence of cells --------------------------------------------------------------------------


def judged(hook, engine, stress, scale=1.0):
    """Whether crystals without forces, with these stresses (eV/Å³), are converged."""
    atoms = [Atoms("Ar4", np.eye(4)[:, :3], cell=[4.0 * scale] * 3, pbc=True) for _ in stress]
    batch = Batch.from_ase(atoms, system_capacity=len(atoms))
    tensor = jnp.asarray(stress)[:, None, None] * jnp.eye(3)[None]
    batch = batch.replace(stress=tensor, forces=jnp.zeros_like(batch.forces), energy=jnp.zeros(len(atoms)))
    ctx = HookContext(
        batch=batch, workflow=engine, active_mask=batch.system_mask, step_count=0, memory=hook.init(batch)
    )
    return (np.asarray(hook(ctx, hook.stage).batch.status) == 1).tolist()


def test_forces_that_vanish_by_symmetry_are_no_convergence_of_a_cell():
    """Every criterion on forces asks the stress, too, by two bounds: 0.1 GPa, and ASE's force on the cell."""
    relax, still = engine("FIREVariableCell"), engine("FIRE")
    stresses = [0.1, -0.1, 7e-4, -5e-4, 0.0]
    for hook in (
        hooks.ConvergenceHook(),
        hooks.ConvergenceHook.from_fmax(0.05),
        hooks.ConvergenceHook.from_forces(0.05),
        hooks.ConvergenceHook.from_fmax(0.01),
    ):
        assert judged(hook, relax, stresses) == [False, False, False, True, True], hook
        assert judged(hook, still, stresses) == [True] * 5
        assert judged(hook, relax + engine("NVE"), stresses) == [False, False, False, True, True]
    # V stress/atoms is 16 Å³ times the stress here, and 2000 Å³ in a cell five times as wide.
    assert judged(hooks.ConvergenceHook.from_fmax(0.01), relax, [5e-4]) == [True]
    assert judged(hooks.ConvergenceHook.from_fmax(0.005), relax, [5e-4]) == [False]
    assert judged(hooks.ConvergenceHook.from_fmax(0.05), relax, [5e-4], scale=5.0) == [False]
    # What the user says counts: no stress, or another bound.
    assert judged(hooks.ConvergenceHook.from_fmax(0.01, cell=False), relax, [0.1]) == [True]
    both = [{"key": "fmax", "threshold": 0.01}, {"key": "smax", "threshold": 0.2}]
    assert judged(hooks.ConvergenceHook(both), relax, [0.1, 0.3]) == [True, False]
    # An external pressure is what balances.
    squeezed = engine("FIREVariableCell", scalar_pressure=0.1 / GPA)
    assert judged(hooks.ConvergenceHook.from_fmax(0.05), squeezed, [-0.1, 0.0]) == [True, False]
