"""Integrators: ensembles, conserved energies, noise. Seeds are fixed; for each statistical law the
probability that a right code fails it for another seed is said, and is below 1e-4.

`follow` is the one compiled loop of this file: it takes steps and writes down observables.
"""

import dataclasses
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase import units as ase_units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from conftest import cluster, crystal
from scipy import stats

import alchemi_jax
from alchemi_jax import Batch, observables
from alchemi_jax.dynamics import (
    NPH,
    NPT,
    NVE,
    NVTBussi,
    NVTLangevin,
    NVTNoseHoover,
    initialize_velocities,
    remove_com_motion,
)
from alchemi_jax.dynamics.hooks import PressureScheduleHook, TemperatureScheduleHook
from alchemi_jax.dynamics.integrators.barostat import barostat_mass, twice_kinetic
from alchemi_jax.dynamics.matrices import exp_and_mean
from alchemi_jax.models import AbstractModel, HarmonicModel, Morse
from alchemi_jax.neighbors import ListSizes, resized
from alchemi_jax.units import ACCELERATION, GPA, KB


#: Standard errors: normal numbers are beyond 5 with probability 6e-7, Student's with 15 degrees of
#: freedom beyond 6 with 2.4e-5.
NORMAL, STUDENT = 5.0, 6.0
#: About argon, and twice continuously differentiable at the cutoff, so that orders of convergence show.
SMOOTH = Morse(depth=0.0104, width=1.6, r0=3.8, cutoff=5.6, onset=4.4)
RECORDS = 160


def follow(engine, state, every):
    """`_follow`, of which nothing is lost."""
    # An array, so that another number of steps is not another program.
    rows, state = _follow(engine, state, jnp.asarray(every))
    assert not np.any(state.overflow)
    assert not np.any(state.batch.failed)
    return rows, state


@eqx.filter_jit
def _follow(engine, state, every):
    """RECORDS rows of observables, one after `every` steps, and the state at the end."""

    def record(state, _):
        state = jax.lax.fori_loop(0, every, lambda _, s: engine.step(s), state)
        b = state.batch
        row = {
            "conserved": engine.conserved_energy(state),
            "double": 2 * observables.kinetic_energy(b),
            "momentum": observables.momentum(b),
            "volume": observables.volume(b),
            "pressure": observables.pressure(b),
            "position": b.positions,
            "velocity": b.velocities,
        }
        if isinstance(state.integrator, tuple):
            row["rate"] = state.integrator[0].rate
        return state, row

    state, rows = jax.lax.scan(record, state, None, length=RECORDS)
    return rows, state


def begun(engine, batch, key=None):
    """A state with lists so roomy that they do not overflow in `follow`, which cannot grow them."""
    state = engine.init(batch, key=key)
    if (held := state.neighbors) is not None:
        roomy = ListSizes(*(2 * size for size in dataclasses.astuple(held.sizes)))
        state = state.replace(neighbors=resized(state.batch, held, roomy))
    return state.replace(batch=state.batch.replace(meta=None))


def agrees(estimates, expected, errors=STUDENT):
    """Independent estimates, one per system, have the expected mean: Student's t."""
    estimates = np.asarray(estimates)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    return np.abs(estimates.mean() - expected) <= errors * error


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


@pytest.mark.parametrize("kind", ["langevin", "bussi", "npt"])
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


# -- conserved energies ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def argon():
    """Sixteen crystals of 32 atoms that move, about at equilibrium at 30 K."""
    batch = Batch.from_ase([crystal(seed, 2, 0.15, 5.32) for seed in range(16)])
    return initialize_velocities(batch, 30.0, jax.random.key(4))


def nose_hoover(**kwargs):
    return NVTNoseHoover(
        **{"model": SMOOTH, "dt": 4.0, "temperature": 30.0, "thermostat_time": 150.0, **kwargs}
    )


def npt(cell="isotropic", **kwargs):
    own = {"thermostat_time": 150.0, "barostat_time": 400.0, "pressure": 0.05}
    return NPT(**{"model": SMOOTH, "dt": 4.0, "temperature": 30.0, "cell": cell, **own, **kwargs})


CONSERVING = {
    "NVTNoseHoover": nose_hoover,
    "NPH": lambda **k: NPH(
        model=SMOOTH, pressure=0.05, temperature=30.0, barostat_time=400.0, cell="anisotropic", **k
    ),
    "NPT": npt,
    "NPT, flexible": lambda **k: npt("flexible", **k),
}


@pytest.mark.parametrize("kind", CONSERVING)
def test_extended_energy_error_falls_as_dt_squared(argon, kind):
    """Over the same time: the exponent from four time steps is 2.0 within 0.15, and nothing drifts."""
    every = np.array([1, 2, 3, 4])
    errors = []
    for n in every:
        engine = CONSERVING[kind](dt=16.0 / n)
        state = begun(engine, argon)
        rows, _ = follow(engine, state, int(n))
        deviation = np.asarray(rows["conserved"] - engine.conserved_energy(state)[None])
        errors.append(np.sqrt((deviation**2).mean()))
        assert np.abs(rows["momentum"]).max() < 1e-10
        # Half of the run is no worse than the other half, to a factor: errors oscillate, they do not grow.
        halves = np.sqrt((deviation.reshape(2, -1) ** 2).mean(axis=1))
        assert halves[1] < 2.5 * halves[0]
    slope = np.polyfit(np.log(16.0 / every), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.15, (slope, errors)
    # It is exchanged: what is conserved is not just small.
    exchanged = np.asarray(rows["double"]).std(axis=0).mean()
    assert errors[-1] < 0.02 * exchanged


def test_nve_conserves_potential_and_kinetic_energy(argon):
    engine = NVE(model=SMOOTH, dt=4.0)
    state = begun(engine, argon)
    expected = state.batch.energy + observables.kinetic_energy(state.batch)
    np.testing.assert_array_equal(engine.conserved_energy(state), expected)


def test_fixed_atoms_keep_their_place_in_a_cell_that_moves():
    """And the extended energy is conserved with them, with 3 degrees of freedom for each other atom."""
    atoms = crystal(0, 2, 0.1, 5.32)
    atoms.set_constraint(FixAtoms(indices=[0, 7]))
    batch = initialize_velocities(Batch.from_ase([atoms] * 16), 30.0, jax.random.key(4))
    engine = npt("flexible")
    state = begun(engine, batch)
    assert np.asarray(state.integrator[0].count).tolist() == [90.0] * 16
    rows, after = follow(engine, state, 4)
    deviation = np.asarray(rows["conserved"] - engine.conserved_energy(state)[None])
    assert np.sqrt((deviation**2).mean()) < 0.02 * np.asarray(rows["double"]).std(axis=0).mean()
    before, after = state.batch.take(), after.batch.take()
    assert (np.abs(after.cell - before.cell).max(axis=(1, 2)) > 0.01).all()
    change = np.subtract(
        *(np.einsum("na,nab->nb", b.positions, np.linalg.inv(b.cell)[b.batch_idx]) for b in (after, before))
    )
    np.testing.assert_allclose(change[before.fixed], 0, atol=1e-12)
    assert np.abs(change[~before.fixed]).max() > 1e-3


# -- ensembles -------------------------------------------------------------------------------------


def test_nose_hoover_has_the_canonical_kinetic_energy(argon):
    """2K/kT is chi² of 93: its distribution (Kolmogorov-Smirnov of samples 480 fs apart, 1e-4 / 3), its mean
    and its variance (between sixteen independent systems)."""
    engine = nose_hoover()
    rows, _ = follow(engine, begun(engine, argon), 40)
    reduced = np.asarray(rows["double"])[RECORDS // 4 :, :16] / (KB * 30.0)
    assert stats.kstest(reduced[::3].ravel(), stats.chi2(93).cdf).pvalue > 3e-5
    assert agrees(reduced.mean(axis=0), 93)
    assert agrees(((reduced - 93) ** 2).mean(axis=0), 186)


@pytest.mark.parametrize(
    "cell", ["isotropic", *(pytest.param(c, marks=pytest.mark.long) for c in ("anisotropic", "flexible"))]
)
def test_npt_has_temperature_pressure_and_compressibility(cell):
    """Eight systems at each of two pressures. Mean temperature and pressure are those asked for; the
    volumes fluctuate as they yield, <V>(P2) - <V>(P1) = -(P2 - P1) Var(V)/kT. Between systems, Student's t of
    15 and of 7 degrees of freedom beyond 6 and 9: 8e-5 together."""
    wanted = np.repeat([0.0, 0.06], 8)
    systems = [crystal(seed, 2, 0.08, 5.43 if p == 0 else 5.37) for seed, p in enumerate(wanted)]
    batch = initialize_velocities(Batch.from_ase(systems), 30.0, jax.random.key(4))
    engine = npt(cell, pressure=wanted)
    every = 40 if cell == "isotropic" else 100
    _, state = follow(engine, begun(engine, batch), 40)
    rows, _ = follow(engine, state, every)
    rows = {k: np.asarray(rows[k])[:, :16] for k in ("double", "pressure", "volume")}
    assert agrees(rows["double"].mean(axis=0), 93 * KB * 30.0)
    assert agrees(rows["pressure"].mean(axis=0) - wanted, 0.0)
    v = rows["volume"].reshape(-1, 2, 8)
    mean = v.mean(axis=0)
    spread = ((v - v.mean(axis=(0, 2), keepdims=True)) ** 2).mean(axis=(0, 1))
    yielded, predicted = mean[1] - mean[0], -0.06 * GPA * spread / (KB * 30.0)
    assert agrees(yielded - predicted, 0.0, 9)
    # The test can fail: the shift is many errors away from none, and from half or thrice as much.
    for factor in (0, 0.5, 3):
        assert not agrees(yielded - factor * predicted, 0.0, 9)


def test_parameters_of_each_system_are_its_own(argon):
    """A batch with parameters per system against batches with one value of each."""
    pick = np.arange(16) % 2
    values = {
        "dt": np.array([2.0, 5.0]),
        "temperature": np.array([20.0, 40.0]),
        "pressure": np.array([0.0, 0.2]),
        "thermostat_time": np.array([80.0, 200.0]),
        "barostat_time": np.array([300.0, 700.0]),
    }
    engine = npt(**{k: v[pick] for k, v in values.items()})
    mixed, _ = follow(engine, begun(engine, argon), 1)
    for which in (0, 1):
        engine = npt(**{k: v[which] for k, v in values.items()})
        same, _ = follow(engine, begun(engine, argon), 1)
        for name in ("volume", "double", "conserved"):
            mine = np.asarray(mixed[name])[:40, :16][:, pick == which]
            np.testing.assert_allclose(mine, np.asarray(same[name])[:40, :16][:, pick == which], rtol=1e-8)


# -- the ensembles of constant pressure ------------------------------------------------------------


class CellSpring(AbstractModel):
    """E = (k/2) |h h^T / side² - 1|² of the cell h alone: what the atoms of a gas in it do is known."""

    k: float
    side: float
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        metric = jnp.einsum("sab,scb->sac", batch.cell, batch.cell) / self.side**2
        return self.k / 2 * jnp.sum((metric - jnp.eye(3)[None]) ** 2, axis=(1, 2)) * batch.system_mask


#: The spring in kT, and the length where it rests, Å.
STIFF, SIDE = 20.0, 10.0
GAS = {"temperature": 300.0, "pressure": 0.02, "thermostat_time": 60.0, "barostat_time": 90.0}


def gas_cells(cell, n, atoms, rng):
    """Cells of an ideal gas in a `CellSpring`, drawn from the exact distribution, h of lower triangular form.

    With X = h h^T / side², 3N - 3 degrees of freedom and Martyna, Tobias and Klein's measure, det(h)^-2 dh of
    flexible cells, dh_xx dh_yy dh_zz of anisotropic and dV of isotropic ones, the density of the
    components of X is exp(-(U + P V)/kT) V^a, a = N - 4, N - 2 and N - 2/3: of normal numbers some are taken.
    """
    kt = KB * GAS["temperature"]
    a = atoms - {"flexible": 4, "anisotropic": 2, "isotropic": 2 / 3}[cell]
    x = np.zeros((0, 3, 3))
    while len(x) < n:
        trial = np.eye(3) + allowed(rng.normal(0, STIFF**-0.5, (20 * n, 3, 3)), cell)
        trial = trial[np.linalg.eigvalsh(trial)[:, 0] > 0]
        pv = GAS["pressure"] * GPA * np.sqrt(np.linalg.det(trial)) * SIDE**3 / kt
        x = np.concatenate([x, trial[rng.random(len(pv)) < np.exp(a * np.log(pv / a) - pv + a)]])
    return np.linalg.cholesky(x[:n]) * SIDE


def allowed(normal, cell):
    """Of independent normal numbers of width w [..., 3, 3], symmetric matrices of density exp(-|m|²/2w²)."""
    axes = normal * np.eye(3)
    if cell == "isotropic":
        return np.eye(3) * normal[:, :1, :1] / 3**0.5
    skew = (normal + normal.swapaxes(1, 2)) / 2 * (1 - np.eye(3))
    return axes + skew if cell == "flexible" else axes


def gas(cell, n, atoms, rng):
    """An engine, and a state of everything that it moves from the exact distribution."""
    kt = KB * GAS["temperature"]
    engine = NPT(model=CellSpring(k=STIFF * kt, side=SIDE), dt=1.5, cell=cell, **GAS)
    cells = gas_cells(cell, n, atoms, rng)
    systems = [Atoms([18] * atoms, rng.random((atoms, 3)) @ h, cell=h, pbc=True) for h in cells]
    batch = initialize_velocities(Batch.from_ase(systems), GAS["temperature"], jax.random.key(1))
    state = begun(engine, batch)
    barostat, *chains = state.integrator
    mass, *inertias = (np.asarray(m) for m in engine._masses(batch, state.integrator))
    rate = allowed(rng.normal(size=barostat.rate.shape), cell) * np.sqrt(kt / mass)[:, None, None]
    chains = [
        dataclasses.replace(c, rates=jnp.asarray(rng.normal(size=q.shape) * np.sqrt(kt / q)))
        for c, q in zip(chains, inertias, strict=True)
    ]
    return engine, state.replace(integrator=(dataclasses.replace(barostat, rate=jnp.asarray(rate)), *chains))


@pytest.mark.parametrize(("cell", "parts"), [("isotropic", 1), ("anisotropic", 3), ("flexible", 6)])
def test_npt_leaves_its_ensemble_as_it_is(cell, parts):
    """Six atoms of an ideal gas in a cell with a spring: states drawn from the exact distribution still have
    it after a while, for each form of the cell with its own measure. So few atoms show each term with 1/N.
    Kolmogorov-Smirnov, five of them at 1e-5; mean pressure within 5 errors. Whether a path finds all of
    the ensemble is another question, which the crystals below answer."""
    n, atoms = 2000, 6
    kt = KB * GAS["temperature"]
    engine, start = gas(cell, n, atoms, np.random.default_rng(11))
    state = eqx.filter_jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: engine.step(s), s))(start)
    assert not np.any(state.batch.failed)
    error = np.asarray(engine.conserved_energy(state) - engine.conserved_energy(start))[:n]
    assert np.sqrt((error**2).mean()) < 0.02 * kt
    batch = state.batch
    double = np.asarray(2 * observables.kinetic_energy(batch))[:n] / kt
    assert stats.kstest(double, stats.chi2(3 * atoms - 3).cdf).pvalue > 1e-5
    mass = engine._masses(batch, state.integrator)[0]
    of_cell = np.asarray(twice_kinetic(state.integrator[0], mass))[:n] / kt
    assert stats.kstest(of_cell, stats.chi2(parts).cdf).pvalue > 1e-5
    # Against another sample, for the states began with this one.
    first, mine = np.asarray(start.batch.cell)[:n], np.asarray(batch.cell)[:n]
    exact = gas_cells(cell, 20 * n, atoms, np.random.default_rng(12))
    for number in (
        np.linalg.det,
        lambda h: (h[:, 0] ** 2).sum(-1),
        lambda h: (h[:, 0] * h[:, 1]).sum(-1),
    ):
        if np.ptp(number(exact)) > 1e-9:
            assert np.corrcoef(number(first), number(mine))[0, 1] < 0.7
            assert stats.ks_2samp(number(mine), number(exact)).pvalue > 1e-5
    p = np.asarray(observables.pressure(batch))[:n]
    assert abs(p.mean() - GAS["pressure"]) < NORMAL * p.std() / np.sqrt(n)


@pytest.mark.parametrize("cell", ["anisotropic", "flexible"])
def test_the_modes_of_a_cell_share_their_energy(cell):
    """A cell with a stiff spring that rings along x: soon each component of the strain has a rate of kT, not
    only their sum, which is all that one chain for the whole cell holds (there x kept three to four kT, y a
    tenth). Between eight systems, Student's t of 7 degrees of freedom beyond 11, six times: 7e-5."""
    kt = KB * GAS["temperature"]
    engine = NPT(model=CellSpring(k=2000 * kt, side=SIDE), dt=1.5, cell=cell, **GAS | {"pressure": 0.0})
    rng = np.random.default_rng(3)
    systems = [Atoms("Ar6", rng.random((6, 3)) * SIDE, cell=[1.1 * SIDE, SIDE, SIDE], pbc=True)] * 8
    batch = initialize_velocities(Batch.from_ase(systems), GAS["temperature"], jax.random.key(4))
    _, state = follow(engine, begun(engine, batch), 30)
    rows, state = follow(engine, state, 60)
    mass = np.asarray(
        barostat_mass(state.batch, state.integrator[0], GAS["temperature"], GAS["barostat_time"])
    )
    share = mass[:8, None, None] * (np.asarray(rows["rate"])[:, :8] ** 2).mean(axis=0) / kt
    for i in range(3):
        for j in range(i + 1) if cell == "flexible" else (i,):
            part = (1 if i == j else 2) * share[:, i, j]
            assert agrees(part, 1, 11), (i, j, part)
            assert part.std() < 0.4, (i, j, part)


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
    page = Path(alchemi_jax.__file__).parent.parent / "docs" / "algorithms.md"
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
    dynamics = vars(alchemi_jax.dynamics)
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
