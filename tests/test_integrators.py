"""Integrators: velocities, ensembles of constant volume, noise, schedules, observables. Seeds are fixed; for
each statistical law the probability that a right code fails it for another seed is said, and is below 1e-4.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase import units as ase_units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from conftest import cluster, crystal, public
from following import NORMAL, RECORDS, SMOOTH, agrees, begun, follow, nose_hoover, npt
from scipy import stats

import alchemi_jax
from alchemi_jax import Batch, observables
from alchemi_jax.dynamics import (
    NPT,
    NVE,
    NVTBussi,
    NVTLangevin,
    initialize_velocities,
    remove_com_motion,
)
from alchemi_jax.dynamics.hooks import PressureScheduleHook, TemperatureScheduleHook
from alchemi_jax.dynamics.matrices import exp_and_mean
from alchemi_jax.models import HarmonicModel
from alchemi_jax.units import ACCELERATION, GPA, KB


# -- velocities ------------------------------------------------------------------------------------


def test_velocities_are_maxwell_boltzmann_and_the_centre_of_mass_rests():
    """2K/kT of N atoms follows chi² of 3N - 3, of one atom of 3 (Kolmogorov-Smirnov, each 1e-5)."""
    mixed = Atoms("HArXeOC", positions=np.arange(15.0).reshape(5, 3))
    batch = Batch.from_ase([mixed] * 400 + [Atoms("Xe")] * 400)
    kelvin = np.repeat([50.0, 600.0, 300.0, 7.0], 200)
    moving = initialize_velocities(batch, kelvin, jax.random.key(5))
    reduced = np.asarray(2 * observables.kinetic_energy(moving))[:800] / (KB * kelvin)
    assert stats.kstest(reduced[:400], stats.chi2(12).cdf).pvalue > 1e-5
    assert stats.kstest(reduced[400:], stats.chi2(3).cdf).pvalue > 1e-5
    np.testing.assert_allclose(observables.momentum(moving)[:400], 0, atol=1e-15)
    # Each atom has its share: (1 - m/M) kT/m, in each direction.
    rows = np.asarray(moving.velocities)[:2000].reshape(400, 5, 3) / np.sqrt(kelvin[:400, None, None])
    m = mixed.get_masses()
    expected = (1 - m / m.sum()) / m * KB * ACCELERATION
    np.testing.assert_allclose((rows**2).mean(axis=(0, 2)), expected, rtol=NORMAL * np.sqrt(2 / 1200))


@pytest.mark.cheap_xla
def test_velocities_depend_on_key_and_system_id_alone():
    a, b = cluster(0, 5), cluster(1, 3)
    fixed = cluster(2, 6)
    fixed.set_constraint(FixAtoms(indices=[1, 4]))
    batch = Batch.from_ase([a, b, fixed])
    key = jax.random.key(1)
    whole = initialize_velocities(batch, 100.0, key).take()
    roomy = Batch.from_ase([b], atom_capacity=40, system_capacity=5)
    alone = initialize_velocities(roomy.replace(system_id=roomy.system_id.at[0].set(1)), 100.0, key)
    np.testing.assert_array_equal(alone.take().velocities, whole.velocities[5:8])
    other = initialize_velocities(batch, 100.0, jax.random.key(2)).take()
    assert (other.velocities[:5] != whole.velocities[:5]).all()
    # Fixed atoms rest, and a system that has some keeps what its centre of mass has.
    assert (whole.velocities[[9, 12]] == 0).all()
    assert np.linalg.norm(observables.momentum(whole)[2]) > 1e-3
    same = remove_com_motion(batch.replace(velocities=jnp.ones_like(batch.velocities))).take()
    np.testing.assert_allclose(same.velocities[:8], 0, atol=1e-15)
    np.testing.assert_array_equal(same.velocities[8:], 1)
    with pytest.raises(ValueError, match="temperature must be zero or positive"):
        initialize_velocities(batch, -1.0)


# -- Langevin --------------------------------------------------------------------------------------


def test_langevin_in_a_well_is_exact_at_large_dt():
    """BAOAB in a harmonic well: <x²> = kT/k whatever dt is, <v²> = kT/m (1 - (omega dt)²/4); three
    temperatures in one batch (variances of normal numbers, 12 of them within 5 errors: 7e-6)."""
    n, omega_dt, dt = 3 * 512, 1.5, 10.0
    mass = Atoms("Ar").get_masses()[0]
    k = mass * (omega_dt / dt) ** 2 / ACCELERATION
    kelvin = np.repeat([10.0, 300.0, 2000.0], 512)
    engine = NVTLangevin(model=HarmonicModel(k=k), dt=dt, temperature=kelvin, friction=0.05)
    batch = Batch.from_ase([Atoms("Ar")] * n, system_capacity=n)
    rows, _ = follow(engine, begun(engine, batch, jax.random.key(3)), 12)
    for name, unit in (("position", KB * kelvin / k), ("velocity", KB * kelvin / mass * ACCELERATION)):
        expected = 1.0 if name == "position" else 1 - omega_dt**2 / 4
        samples = np.asarray(rows[name])[10:, :n] / np.sqrt(unit)[None, :, None]
        # Snapshots 12 steps apart are uncorrelated: the friction forgets exp(-0.5) in a step.
        square = (samples**2).reshape(150, 3, 512 * 3)
        error = np.sqrt(2 / (150 * 512 * 3)) * expected
        np.testing.assert_allclose(square.mean(axis=(0, 2)), expected, atol=NORMAL * error)


def test_langevin_without_friction_is_nve_bit_for_bit(lj):
    batch = initialize_velocities(Batch.from_ase([cluster(0), crystal(1, 1)]), 30.0)
    nve = NVE(model=lj, dt=4.0).run(batch, 40).take()
    langevin = NVTLangevin(model=lj, dt=4.0, temperature=300.0, friction=0.0).run(batch, 40).take()
    for name in ("positions", "velocities", "forces", "energy"):
        np.testing.assert_array_equal(getattr(langevin, name), getattr(nve, name))


NOISY = {
    "langevin": lambda **k: NVTLangevin(**{"model": WELL, "dt": 5.0, "temperature": 300.0, **k}),
    "bussi": lambda **k: NVTBussi(**{"model": WELL, "dt": 5.0, "temperature": 300.0, **k}),
}
WELL = HarmonicModel(k=0.3)


@pytest.mark.parametrize("kind", NOISY)
def test_noise_belongs_to_the_system(kind):
    """Alone, in another row, with padding: the same path. Another key or system_id: another one."""
    engine = NOISY[kind]()
    structures = [cluster(seed, n) for seed, n in enumerate((4, 1, 6))]

    def run(order, ids, key=0, **capacities):
        batch = Batch.from_ase([structures[i] for i in order], **capacities)
        batch = batch.replace(system_id=batch.system_id.at[: len(ids)].set(jnp.array(ids, jnp.int32)))
        batch = initialize_velocities(batch, 300.0)
        out = engine.run(batch, 30, key=jax.random.key(key)).take()
        return dict(zip(order, np.split(out.positions, out.first_atom[1:]), strict=True))

    together = run([0, 1, 2], [10, 11, 12])
    turned = run([2, 0, 1], [12, 10, 11], atom_capacity=50, system_capacity=6)
    alone = run([2], [12])
    for i in range(3):
        np.testing.assert_allclose(turned[i], together[i], atol=1e-12)
    np.testing.assert_allclose(alone[2], together[2], atol=1e-12)
    assert np.abs(run([2], [13])[2] - together[2]).max() > 1e-3
    assert np.abs(run([2], [12], key=1)[2] - together[2]).max() > 1e-3


@pytest.mark.parametrize(
    "kind", ["langevin", *(pytest.param(k, marks=pytest.mark.cheap_xla) for k in ("bussi", "npt"))]
)
def test_n_steps_are_k_and_then_the_rest(kind):
    if kind == "npt":
        engine = NPT(model=SMOOTH, dt=4.0, temperature=30.0, cell="flexible")
        batch = initialize_velocities(Batch.from_ase([crystal(0, 1), crystal(1, 1)]), 30.0)
    else:
        engine = NOISY[kind]()
        batch = initialize_velocities(Batch.from_ase([cluster(0, 4), cluster(1, 2)]), 300.0)
    start = engine.init(batch)
    whole = engine.advance(start, 30)
    parts = engine.advance(engine.advance(start, 11), 19)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


# -- Bussi -----------------------------------------------------------------------------------------


def test_bussi_has_the_canonical_kinetic_energy():
    """Free atoms, three a system with their centre of mass at rest: 2K/kT is chi² of 6, from a start ten
    times too hot (Kolmogorov-Smirnov, 1e-5); K forgets itself as exp(-t/tau) (5 errors)."""
    n, c = 400, np.exp(-0.7)
    kelvin = np.repeat([20.0, 500.0], n // 2)
    engine = NVTBussi(model=HarmonicModel(k=0.0), dt=7.0, temperature=kelvin, thermostat_time=10.0)
    batch = initialize_velocities(Batch.from_ase([Atoms("NeArXe")] * n, system_capacity=n), 10 * kelvin)
    rows, state = follow(engine, begun(engine, batch, jax.random.key(8)), 1)
    reduced = np.asarray(rows["double"]) / (KB * kelvin)
    assert reduced[0].mean() > 20
    # Every 15th step: they remember 3e-5.
    assert stats.kstest(reduced[25::15].ravel(), stats.chi2(6).cdf).pvalue > 1e-5
    x, y = reduced[25:-1] - 6, reduced[26:] - 6
    slope = (x * y).sum(axis=0).mean() / (x * x).mean(axis=0).mean() / len(x)
    assert abs(slope - c) < NORMAL * np.sqrt((1 - c**2) / x.size) * 2
    np.testing.assert_allclose(rows["momentum"][-1], 0, atol=1e-12)
    # What the rescalings put in is booked.
    last = np.asarray(engine.conserved_energy(state))
    np.testing.assert_allclose(np.asarray(rows["conserved"]) - last[None], 0, atol=1e-10)
    assert (np.abs(state.integrator.heat) > 1e-4).mean() > 0.9


# -- Nosé-Hoover -----------------------------------------------------------------------------------


@pytest.mark.full_xla
def test_nose_hoover_has_the_canonical_kinetic_energy(argon):
    """2K/kT is chi² of 93: its distribution (Kolmogorov-Smirnov of samples 500 fs apart, 1e-4 / 3), its mean
    and its variance (between sixteen independent systems)."""
    engine = nose_hoover()
    rows, _ = follow(engine, begun(engine, argon), 25)
    reduced = np.asarray(rows["double"])[RECORDS // 4 :, :16] / (KB * 30.0)
    assert stats.kstest(reduced[::5].ravel(), stats.chi2(93).cdf).pvalue > 3e-5
    assert agrees(reduced.mean(axis=0), 93)
    assert agrees(((reduced - 93) ** 2).mean(axis=0), 186)


# -- schedules, vmap, compiling --------------------------------------------------------------------


def test_schedules_reach_thermostat_and_barostat():
    """The heat is booked at the temperature of its time, so that a ramp conserves the energy, too."""
    batch = initialize_velocities(Batch.from_ase([crystal(s, 1, 0.1, 5.32) for s in range(4)]), 20.0)
    ramp = TemperatureScheduleHook.ramp(20.0, 60.0, 600)
    engine = nose_hoover(hooks=[ramp])
    rows, after = follow(engine, begun(engine, batch), 8)
    np.testing.assert_allclose(after.batch.target_temperature[:4], 60.0)
    conserved = np.asarray(rows["conserved"])[:, :4]
    late = np.asarray(rows["double"])[90:, :4].mean(axis=0) / (9 * KB)
    assert 45 < late.mean() < 75
    assert (
        np.abs(conserved - conserved[:1]).max() < 0.02 * np.abs(np.asarray(after.integrator.heat)[:4]).min()
    )

    squeeze = PressureScheduleHook.ramp(0.0, 0.5, 300)
    engine = npt(hooks=[squeeze])
    rows, after = follow(engine, begun(engine, batch), 8)
    np.testing.assert_allclose(after.batch.target_pressure[:4], 0.5)
    assert abs(np.asarray(rows["pressure"])[80:, :4].mean() - 0.5) < 0.1


@pytest.mark.cheap_xla
def test_vmap_equals_a_loop_and_numbers_do_not_recompile(compilations):
    batch = initialize_velocities(Batch.from_ase([cluster(0, 4), cluster(1, 3)]), 300.0)
    for make in (
        NOISY["langevin"],
        NOISY["bussi"],
        lambda **k: nose_hoover(**{"model": WELL, **k}),
    ):
        start = begun(make(), batch)
        swept = jax.vmap(
            lambda t, make=make, start=start: make(temperature=t).loop(start, 9).batch.positions
        )(jnp.array([100.0, 700.0]))
        make().run(batch, 9)
        with compilations() as names:
            found = [make(temperature=t).run(batch, 9) for t in (100.0, 700.0)]
        assert names == []
        for positions, out in zip(swept, found, strict=True):
            np.testing.assert_allclose(positions, out.positions, atol=1e-10)


# -- observables -----------------------------------------------------------------------------------


def test_observables_are_those_of_ase():
    atoms = crystal(0, 1)
    atoms.set_velocities(np.random.default_rng(0).normal(0, 0.02, (4, 3)))
    stress = np.array([1.0, 2.0, 3.0, 0.3, 0.2, 0.1]) * 1e-3
    atoms.calc = SinglePointCalculator(atoms, energy=-0.25, stress=stress, forces=np.zeros((4, 3)))
    full = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]]) * 1e-3
    batch = Batch.from_ase(atoms)
    batch = batch.replace(
        energy=jnp.full_like(batch.energy, -0.25),
        stress=jnp.broadcast_to(jnp.asarray(full)[None], batch.stress.shape),
    )
    theirs = atoms.get_stress(voigt=False, include_ideal_gas=True)
    np.testing.assert_allclose(observables.stress(batch)[0], theirs, rtol=1e-12)
    np.testing.assert_allclose(observables.kinetic_stress(batch)[0], theirs - full, atol=1e-15)
    np.testing.assert_allclose(observables.pressure(batch)[0], -np.trace(theirs) / 3 / GPA, rtol=1e-12)
    np.testing.assert_allclose(observables.temperature(batch, True)[0], atoms.get_temperature(), rtol=1e-12)
    enthalpy = -0.25 + atoms.get_kinetic_energy() + 0.7 * ase_units.GPa * atoms.get_volume()
    np.testing.assert_allclose(observables.enthalpy(batch, 0.7)[0], enthalpy, rtol=1e-12)
    grams = atoms.get_masses().sum() / ase_units.kg * 1e3
    np.testing.assert_allclose(
        observables.density(batch)[0], grams / (atoms.get_volume() * 1e-24), rtol=1e-12
    )
    molecule = Batch.from_ase(cluster(0, 3))
    for found in (observables.density(molecule), observables.enthalpy(molecule, 0.0)):
        assert np.isnan(found[0])


def test_degrees_of_freedom():
    """3N, less three where the centre of mass rests and may not be pushed; none for fixed atoms; three for an
    atom alone."""
    some = cluster(2, 6)
    some.set_constraint(FixAtoms(indices=[1, 4]))
    alone = cluster(0, 5)
    alone.set_constraint(FixAtoms(indices=[0, 1, 2, 4]))
    batch = Batch.from_ase([cluster(0, 5), some, alone, cluster(1, 1)])
    count = observables.degrees_of_freedom
    assert count(batch)[:4].tolist() == [12, 12, 3, 3]
    assert count(batch, True)[:4].tolist() == [15, 12, 3, 3]
    moving = initialize_velocities(batch, 300.0)
    assert count(moving)[:4].tolist() == [12, 12, 3, 3]
    assert count(moving.replace(velocities=moving.velocities + 1e-3))[0] == 15


def test_exponentials_of_matrices():
    from scipy.linalg import expm

    a = np.random.default_rng(0).normal(0, 0.4, (20, 3, 3))
    exp, mean = exp_and_mean(jnp.asarray(a))
    block = np.zeros((6, 6))
    for i in range(20):
        block[:3, :3], block[:3, 3:] = a[i], np.eye(3)
        whole = expm(block)
        np.testing.assert_allclose(exp[i], whole[:3, :3], atol=1e-13)
        np.testing.assert_allclose(mean[i], whole[:3, 3:], atol=1e-13)


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nose_hoover(dt=-1.0), "dt must be positive"),
        (lambda: nose_hoover(temperature=0.0), "temperature must be positive"),
        (lambda: nose_hoover(thermostat_time=0.0), "thermostat_time must be positive"),
        (lambda: NOISY["langevin"](friction=-0.1), "friction must be zero or positive"),
        (lambda: NOISY["langevin"](temperature=[1.0, -1.0]), "temperature must be zero or positive"),
        (lambda: NOISY["bussi"](thermostat_time=0.0), "thermostat_time must be positive"),
        (lambda: npt(pressure=np.inf), "pressure must be finite"),
        (lambda: npt(barostat_time=-1.0), "barostat_time must be positive"),
        (lambda: npt("cubic"), "cell must be one of isotropic, anisotropic, flexible, not 'cubic'"),
        (
            lambda: npt(dt=[1.0, 2.0], pressure=[0.0] * 3),
            "pressure has 3 values, one per system, but dt has 2",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refusals():
    with pytest.raises(ValueError, match=r"system 1 \(Ar3\) is not periodic .* NPT has no cell"):
        npt().init(Batch.from_ase([crystal(0, 1), cluster(0, 3)]))
    with pytest.raises(TypeError, match="PressureScheduleHook sets the pressure, but NVTNoseHoover"):
        nose_hoover(hooks=[PressureScheduleHook.ramp(0.0, 1.0, 5)])


def test_an_engine_reads_like_a_methods_section():
    text = repr(npt("flexible", n_steps=100))
    assert "dt=4, temperature=30, pressure=0.05, thermostat_time=150, barostat_time=400, n_steps=100" in text
    assert "cell='flexible'" in text


# -- an integrator of one's own --------------------------------------------------------------------


def test_the_page_on_algorithms():
    """Its integrator runs as it stands, in 15 lines, and is the Andersen thermostat that it says; the table
    has a row for each engine."""
    page = Path(alchemi_jax.__file__).parent.parent / "docs" / "reference" / "algorithms.md"
    if not page.exists():
        pytest.skip("installed without its repository")
    text = page.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    body = [line for line in code[code.index("class ") :].splitlines() if line.strip()]
    assert len(body) <= 15
    mass, n = Atoms("Ar").get_masses()[0], 1000
    engine = names["NVTAndersen"](model=HarmonicModel(k=1.0), dt=1.0, temperature=100.0, rate=0.05)
    batch = Batch.from_ase([Atoms("Ar")] * n, system_capacity=n)
    rows, _ = follow(engine, begun(engine, batch), 5)
    # Samples 100 steps apart remember exp(-5); variances within 5 errors.
    square = np.asarray(rows["velocity"])[40::20, :n] ** 2 * mass / (KB * 100.0 * ACCELERATION)
    assert abs(square.mean() - 1) < NORMAL * np.sqrt(2 / square.size)
    dynamics = public(alchemi_jax.dynamics)
    engines = [
        name
        for name, value in dynamics.items()
        if isinstance(value, type)
        and issubclass(value, alchemi_jax.dynamics.AbstractDynamics)
        and name not in ("AbstractDynamics", "FusedStage")
    ]
    assert len(engines) >= 14
    for name in engines:
        assert f"| `{name}`" in text, name
