"""Structures that no run can treat, and those that only look like it: refused, failed or skipped by name,
with the number that was too large, before anything is allocated; the others go on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import cluster, crystal

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import FIRE, NPH, NPT, NVE, ConvergenceHook, FIREVariableCell, Sampler
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.neighbors import Requirements, allocate, guess_sizes, limits


MODEL = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=5.0, skin=0.5)


def squeezed(side):
    """Two atoms in a small cell."""
    return Atoms("Ar2", [[0, 0, 0], [side / 2] * 3], cell=[side] * 3, pbc=True)


def test_a_cutoff_that_is_no_length():
    with pytest.raises(ValueError, match=r"cutoff must be at most 500000 Å, not 1e\+06"):
        LennardJones(epsilon=0.01, sigma=3.4, cutoff=1e6)


@pytest.mark.parametrize(
    ("atoms", "cutoff", "number"),
    [
        (squeezed(1e-3), 8.5, r"1\.4e\+13 periodic images"),
        (squeezed(4.0), 1e4, r"2\.2e\+11 periodic images"),
        (squeezed(1e-120), 8.5, r"(inf|nan) periodic images"),
        (crystal(0, 1), 4e5, r"1\.4e\+16 periodic images"),
    ],
)
def test_what_needs_too_much_is_refused_by_name(atoms, cutoff, number):
    """In a batch with another system, whether a run or a list is asked for."""
    batch = Batch.from_ase([crystal(0, 1), atoms])
    model = LennardJones(epsilon=0.01, sigma=3.4, cutoff=cutoff)
    wanted = rf"system [01] \(Ar\d\): it needs a neighbor list of about {number}"
    with np.errstate(all="ignore"):
        with pytest.raises(ValueError, match=wanted):
            NVE(model=model, dt=1.0).init(batch)
        with pytest.raises(ValueError, match=wanted):
            allocate(batch, Requirements(cutoff))


def test_what_fits_apart_and_not_together(monkeypatch):
    """The memory of the whole batch; the system that needs most is named, with the bytes."""
    batch = Batch.from_ase([cluster(0, 5), crystal(1, 1)])
    guess_sizes(batch, 8.5, 1.0)
    monkeypatch.setattr(limits, "memory", lambda: 40_000)
    message = r"this batch needs .* GiB.*system 1 .* alone has"
    with pytest.raises(ValueError, match=message):
        guess_sizes(batch, 8.5, 1.0)


def test_a_sampler_leaves_them_out_and_the_others_are_relaxed():
    """A cell of a thousandth of an Å, atoms at 1e300 Å, positions that are not finite: skipped, named."""
    far, lost = cluster(1, 5), cluster(2, 5)
    far.positions[0] = 1e300
    lost.positions[1] = np.nan
    good = [cluster(3, 5), cluster(4, 5)]
    source = [good[0], squeezed(1e-3), far, lost, good[1]]
    relax = FIRE(model=MODEL, n_steps=60, hooks=[ConvergenceHook.from_fmax(0.05)])
    sampler = Sampler(source, max_systems=2, unfit="skip")
    with pytest.warns(RuntimeWarning, match="left out"):
        out = relax.run(sampler=sampler)
    assert np.asarray(out.system_id)[: out.num_systems].tolist() == [0, 4]
    reasons = {number: reason for number, _, reason in sampler.skipped}
    assert sorted(reasons) == [1, 2, 3]
    assert "periodic images" in reasons[1]
    assert "1e+300 Å from the origin" in reasons[2]
    assert "not finite" in reasons[3]
    with pytest.raises(ValueError, match=r"system 1 \(Ar2\) does not fit the sampler: it needs"):
        relax.run(sampler=Sampler([good[0], squeezed(1e-3)]))


@pytest.mark.cheap_xla
@pytest.mark.parametrize("kind", [NPH, NPT, FIREVariableCell])
def test_a_cell_that_collapses_in_a_run_ends_one_system(kind, monkeypatch):
    """By its name, with the reason; the other one does as it does alone."""
    monkeypatch.setattr(limits, "memory", lambda: 128 * 20_000)
    gas = LennardJones(epsilon=0.0, sigma=3.4, cutoff=4.0, skin=0.5)
    batch = Batch.from_ase([crystal(0, 1), crystal(1, 1)], system_capacity=2)
    if kind is FIREVariableCell:
        md = kind(gas, scalar_pressure=[20.0, 0.0], dt=20.0, dt_max=20.0, max_step=20.0, n_steps=25)
    else:
        heat = {"temperature": 30.0} if kind is NPT else {}
        md = kind(gas, dt=4.0, pressure=[20.0, 0.0], barostat_time=50.0, n_steps=25, **heat)
    with pytest.warns(
        RuntimeWarning,
        match=r"system 0 \(Ar4\) failed .*its cell became too small for a cutoff of 4 Å and a skin of 0.5 Å"
        r".*fit into [\d.]+ GiB of memory",
    ):
        out = md.run(batch).take()
    assert out.failed.tolist() == [True, False]
    assert np.isfinite(out.cell).all()
    assert out.steps_taken[1] == 25


@pytest.mark.cheap_xla
def test_a_cell_that_collapses_step_by_step_ends_one_system():
    """Lists could follow it, larger and larger, until the memory is full."""
    gas = LennardJones(epsilon=0.0, sigma=3.4, cutoff=1.5, skin=0.1)
    batch = Batch.from_ase([crystal(0, 1, a=0.9), crystal(1, 1, a=3.0)], system_capacity=2)
    relax = FIREVariableCell(gas, scalar_pressure=[2e3, 0.0], dt=20.0, dt_max=20.0, max_step=2.0, n_steps=3)
    with pytest.warns(
        RuntimeWarning,
        match=r"system 0 \(Ar4\) failed in step \d: its cell collapsed: .* more than 10 atoms per Å³",
    ):
        out = relax.run(batch).take()
    assert out.failed.tolist() == [True, False]
    assert abs(np.linalg.det(out.cell[0])) > 0.4
    assert out.steps_taken[1] == 3


# -- far from the origin ---------------------------------------------------------------------------


def test_bounds_of_positions():
    """A thousandth of an Å is what rounding may come to at the start, in either precision."""
    for dtype, most in (("float32", 2.0**13), ("float64", 2.0**42)):
        near = Atoms("Ar2", [[most - 2, 0, 0], [0, 0, 0]])
        beyond = Atoms("Ar2", [[0, 0, 0], [0, -most - 2, 0]])
        Batch.from_ase([near], dtype=dtype)
        with pytest.raises(ValueError, match=rf"system 1 \(Ar2\): positions of atom 1 are .* in {dtype}"):
            Batch.from_ase([near, beyond], dtype=dtype)
    with pytest.raises(ValueError, match=r"positions of atom 0 are 1e\+300 Å from the origin"):
        Batch.from_data_list([AtomicData(positions=[[1e300, 0, 0]], numbers=[18])])


def block(shift):
    """64 atoms near one another, in an open system so large that a cell list makes its neighbors."""
    x = np.arange(4) * 3.8
    atoms = Atoms("Ar64", positions=np.array(np.meshgrid(x, x, x)).reshape(3, -1).T)
    atoms.positions += np.random.default_rng(0).normal(0, 0.1, (64, 3)) + shift
    return atoms


def test_open_systems_have_the_same_energy_far_away():
    """At the place to which unused slots used to point, and much further; neighbors are found in single
    precision, from coordinates relative to the system."""
    shifts = np.array([0.0, 1e6, -1e6, 1e9])
    batch = Batch.from_ase([block(s) for s in shifts], dtype="float64", system_capacity=4)
    neighbors = allocate(batch, MODEL.requirements)
    energy = np.asarray(jax.jit(lambda b, n: MODEL.energy(b, n))(batch, neighbors))
    np.testing.assert_allclose(energy[1:3], energy[0], rtol=1e-8)
    # At 1e9 Å the positions themselves are rounded to 1e-7 Å.
    np.testing.assert_allclose(energy[3], energy[0], rtol=1e-5)
    counts = np.asarray((neighbors.index < neighbors.far).sum(0)).reshape(4, -1)[:, :64]
    np.testing.assert_array_equal(counts, np.broadcast_to(counts[:1], counts.shape))


def test_what_flies_away_in_single_precision_fails_by_name():
    """Before rounding swallows its steps; its neighbor does not notice."""
    batch = Batch.from_ase([Atoms("Ar"), Atoms("Ar")], dtype="float32", system_capacity=2)
    batch = batch.replace(velocities=batch.velocities.at[0, 0].set(3e4))
    with pytest.warns(RuntimeWarning, match=r"system 0 \(Ar\) failed in step 4: its atoms are so far"):
        out = NVE(HarmonicModel(k=0.0), dt=1.0, n_steps=8).run(batch).take()
    assert out.failed.tolist() == [True, False]
    assert jnp.isfinite(out.positions).all()
    assert out.steps_taken.tolist() == [4, 8]
