"""Energies, forces and stress: against ASE, against differences, and the symmetries."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.lj import LennardJones as ASELennardJones
from ase.calculators.morse import MorsePotential
from conftest import EPSILON, SIGMA, cluster, crystal, zoo

from alchemi_jax import Batch
from alchemi_jax.models import AbstractModel, AbstractPair, HarmonicModel, LennardJones, Morse
from alchemi_jax.neighbors import empty_list, grow, guess_sizes, update


@eqx.filter_jit
def listed(model, batch, sizes):
    return update(batch, empty_list(batch, model.cutoff, model.skin, sizes))


def neighbors_of(model, batch):
    sizes = guess_sizes(batch, model.cutoff, model.skin)
    while (found := listed(model, batch, sizes)).overflow:
        sizes = grow(sizes, np.asarray(found.needs))
    return found


@eqx.filter_jit
def evaluate(model, batch, neighbors, derived=False):
    """By the model's own formulas, or by the gradient of its energy."""
    method = AbstractModel.evaluate if derived else type(model).evaluate
    return method(model, batch, neighbors, stress=True)


CASES = {
    "LennardJones": (
        LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.5, shift=True),
        ASELennardJones(epsilon=EPSILON, sigma=SIGMA, rc=8.5),
    ),
    "Morse": (
        Morse(depth=0.02, width=1.6, r0=3.7, cutoff=8.5, onset=7.0),
        MorsePotential(epsilon=0.02, r0=3.7, rho0=1.6 * 3.7, rcut1=7.0 / 3.7, rcut2=8.5 / 3.7),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("derived", [False, True], ids=["closed form", "gradient"])
@pytest.mark.parametrize("which", ["all at once", "even", "even and free"])
def test_equals_ase(name, derived, which):
    """On every kind of geometry, in a batch of unequal systems and in those of equal ones."""
    model, calculator = CASES[name]
    even = [crystal(3), crystal(4)] if which == "even" else [cluster(3), cluster(4)]
    structures = list(zoo().values()) if which == "all at once" else even
    batch = Batch.from_ase(structures)
    results = evaluate(model, batch, neighbors_of(model, batch), derived)
    for i, atoms in enumerate(structures):
        atoms.calc = calculator
        rows = slice(int(batch.first_atom[i]), int(batch.first_atom[i]) + len(atoms))
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        np.testing.assert_allclose(results.energy[i], energy, rtol=1e-10)
        scale = max(np.abs(forces).max(), 1e-2)
        np.testing.assert_allclose(results.forces[rows], forces, atol=1e-10 * scale, rtol=0)
        if atoms.pbc.all():
            stress = atoms.get_stress(voigt=False)
            scale = np.abs(stress).max()
            np.testing.assert_allclose(results.stress[i], stress, atol=1e-10 * scale, rtol=0)
        else:
            assert np.isnan(results.stress[i]).all()
    assert not np.any(results.forces[batch.num_atoms :])


def test_mixing_rules_equal_pairs_by_hand():
    """Lorentz-Berthelot, for each pair of the four elements."""
    model = LennardJones.noble_gases(shift=False)
    parameters = {"Ne": (0.0031, 2.74), "Ar": (0.0104, 3.40), "Kr": (0.0140, 3.65), "Xe": (0.0200, 3.98)}
    from ase import Atoms

    pairs = [(a, b) for a in parameters for b in parameters]
    batch = Batch.from_ase([Atoms([a, b], positions=[[0, 0, 0], [0, 0, 3.9]]) for a, b in pairs])
    energy = evaluate(model, batch, neighbors_of(model, batch)).energy
    for i, (a, b) in enumerate(pairs):
        (ea, sa), (eb, sb) = parameters[a], parameters[b]
        x = ((sa + sb) / 2 / 3.9) ** 6
        np.testing.assert_allclose(energy[i], 4 * np.sqrt(ea * eb) * (x * x - x), rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_forces_and_stress_are_derivatives(name):
    """Central differences of the energy, for every kind of geometry."""
    model = CASES[name][0]
    batch = Batch.from_ase(list(zoo().values()))
    neighbors = neighbors_of(model, batch)
    results = evaluate(model, batch, neighbors)
    rng = np.random.default_rng(0)
    direction = jnp.asarray(rng.normal(size=batch.positions.shape)) * batch.atom_mask[:, None]
    strain = jnp.asarray(rng.normal(size=batch.cell.shape))
    strain = (strain + strain.swapaxes(1, 2)) / 2

    @jax.jit
    def energy(h, which):
        moved = jnp.where(which, batch.positions + h * direction, batch.positions)
        f = jnp.eye(3)[None] + jnp.where(which, 0, h) * strain
        at_atom = f[jnp.minimum(batch.batch_idx, batch.system_capacity - 1)]
        b = batch.replace(
            positions=jnp.einsum("na,nab->nb", moved, at_atom),
            cell=jnp.einsum("sab,sbc->sac", batch.cell, f),
        )
        return model.energy(b, update(b, neighbors))

    h = 1e-5
    along = (energy(h, True) - energy(-h, True)) / (2 * h)
    work = -np.bincount(
        np.asarray(batch.batch_idx),
        np.asarray((results.forces * direction).sum(1)),
        batch.system_capacity + 1,
    )[:-1]
    np.testing.assert_allclose(along, work, atol=1e-6, rtol=1e-6)
    along = (energy(h, False) - energy(-h, False)) / (2 * h)
    volume = np.abs(np.linalg.det(batch.cell))
    work = np.asarray((results.stress * strain).sum((1, 2))) * volume
    periodic = np.asarray(batch.pbc).all(1)
    np.testing.assert_allclose(along[periodic], work[periodic], atol=1e-6, rtol=1e-6)


def test_second_derivatives_and_parameters():
    """The closed form can be differentiated again, in positions and in parameters."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.5)
    batch = Batch.from_ase([cluster(0, 5), crystal(0, 1)])
    neighbors = neighbors_of(model, batch)

    def forces(model, x):
        return model.evaluate(batch.replace(positions=x), neighbors).forces

    def gradient(model, x):
        return -jax.grad(lambda x: model.energy(batch.replace(positions=x), neighbors).sum())(x)

    x = batch.positions
    v = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    own = jax.jit(lambda x, v: jax.jvp(lambda x: forces(model, x), (x,), (v,))[1])(x, v)
    derived = jax.jit(lambda x, v: jax.jvp(lambda x: gradient(model, x), (x,), (v,))[1])(x, v)
    np.testing.assert_allclose(own[: batch.num_atoms], derived[: batch.num_atoms], atol=1e-12)
    pulled = jax.jit(lambda x, v: jax.vjp(lambda x: forces(model, x), x)[1](v)[0])(x, v)
    np.testing.assert_allclose(jnp.vdot(pulled, v), jnp.vdot(own, v), rtol=1e-10)

    @jax.jit
    def by_sigma(sigma):
        return model_with(model, sigma).energy(batch, neighbors).sum()

    slope = jax.jit(jax.grad(by_sigma))(3.4)
    difference = (by_sigma(3.4 + 1e-5) - by_sigma(3.4 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-7)


def model_with(model, sigma):
    return dataclasses.replace(model, sigma=sigma)


def test_newton_rotation_translation_permutation():
    model = CASES["LennardJones"][0]
    atoms = cluster(3)
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(atoms))
    turned = atoms.copy()
    turned.positions = atoms.positions @ q + [5.0, -3.0, 100.0]
    batch = Batch.from_ase([atoms, turned, atoms[order]])
    r = evaluate(model, batch, neighbors_of(model, batch))
    n = len(atoms)
    f = np.asarray(r.forces[: 3 * n]).reshape(3, n, 3)
    np.testing.assert_allclose(f.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(r.energy, r.energy[0], rtol=1e-10)
    np.testing.assert_allclose(f[1], f[0] @ q, atol=1e-9)
    np.testing.assert_allclose(f[2], f[0][order], atol=1e-12)


def test_primitive_cell_equals_supercell():
    """Several images of one atom count as so many neighbors: the energy is half a sum over the lattice."""
    from ase.build import bulk

    model = CASES["LennardJones"][0]
    primitive = bulk("Ar", "fcc", a=5.3)
    cells = [primitive, primitive.repeat(2), primitive.repeat((3, 1, 2))]
    batch = Batch.from_ase(cells)
    energy = np.asarray(evaluate(model, batch, neighbors_of(model, batch)).energy)
    np.testing.assert_allclose(energy / [1, 8, 6], energy[0], rtol=1e-12)
    steps = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3), axis=-1).reshape(-1, 3)
    r = np.linalg.norm(steps @ primitive.cell.array, axis=1)
    s6, end = (SIGMA / r[(r > 0) & (r < model.cutoff)]) ** 6, (SIGMA / model.cutoff) ** 6
    lattice = 2 * EPSILON * np.sum(s6 * s6 - s6 - (end * end - end))
    np.testing.assert_allclose(energy[0], lattice, rtol=1e-12)


def test_harmonic_model():
    batch = Batch.from_ase([cluster(0, 5), cluster(1, 3)])
    model = HarmonicModel(k=2.0)
    r = model.evaluate(batch, None, stress=False)
    x = np.asarray(batch.positions)
    np.testing.assert_allclose(r.forces, -2 * x, atol=1e-12)
    np.testing.assert_allclose(r.energy, [(x[:5] ** 2).sum(), (x[5:8] ** 2).sum()], rtol=1e-12)


def test_float32_keeps_digits():
    model = CASES["LennardJones"][0]
    structures = [crystal(0, 3), crystal(1, 3)]
    wide = Batch.from_ase(structures, dtype=np.float64)
    narrow = Batch.from_ase(structures, dtype=np.float32)
    a = evaluate(model, wide, neighbors_of(model, wide))
    b = evaluate(model, narrow, neighbors_of(model, narrow))
    assert b.energy.dtype == b.forces.dtype == np.float32
    np.testing.assert_allclose(b.energy, a.energy, rtol=2e-7)
    np.testing.assert_allclose(b.forces, a.forces, atol=2e-6)


def test_vmap_equals_a_loop():
    """Over positions and over parameters."""
    model = CASES["LennardJones"][0]
    batch = Batch.from_ase([cluster(0), crystal(0, 1)])
    neighbors = neighbors_of(model, batch)
    shifts = jnp.linspace(-0.02, 0.02, 3)
    sigmas = jnp.linspace(3.3, 3.5, 3)

    def one(shift, sigma):
        b = batch.replace(positions=batch.positions * (1 + shift))
        return model_with(model, sigma).evaluate(b, update(b, neighbors), stress=True)

    mapped = jax.jit(jax.vmap(one))(shifts, sigmas)
    single = jax.jit(one)
    for i in range(3):
        alone = single(shifts[i], sigmas[i])
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(mapped), strict=True):
            np.testing.assert_allclose(b[i], a, rtol=1e-9, atol=1e-12)


def test_a_model_needs_only_an_energy():
    class Springs(AbstractPair):
        cutoff: float = 4.5
        skin: float = 0.5

        def pair_energy(self, squared, a, b):
            return (jnp.sqrt(squared) - 3.8) ** 2

    model = Springs()
    batch = Batch.from_ase([cluster(0)])
    r = evaluate(model, batch, neighbors_of(model, batch))
    x = cluster(0).positions
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)[np.triu_indices(13, 1)]
    np.testing.assert_allclose(r.energy[0], ((d[d <= 4.5] - 3.8) ** 2).sum(), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LennardJones(epsilon=1, sigma=1, cutoff=-2), "cutoff must be a positive length"),
        (lambda: LennardJones(epsilon={"Zz": 1}, sigma=1), "'Zz' is no chemical symbol"),
        (lambda: LennardJones(epsilon=np.ones(3), sigma=1), "epsilon must be a number, a dict"),
        (lambda: Morse(depth=1, width=1, r0=1, cutoff=5, onset=6), "onset must lie between"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_element_without_parameters_is_named():
    from ase import Atoms

    batch = Batch.from_ase([cluster(0, 2), Atoms("ArHe", positions=[[0, 0, 0], [0, 0, 4]])])
    with pytest.raises(ValueError, match=r"system 1 \(ArHe\).*no epsilon for He \(atom 1\)"):
        LennardJones.noble_gases().check(batch)


# At 5 Å some pairs are within the cutoff and some are not; at 50 Å all are.
@pytest.mark.parametrize("cutoff", [5.0, pytest.param(50.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("virial", [False, True])
def test_systems_side_by_side_equal_the_list_bit_for_bit(cutoff, virial, monkeypatch):
    """Free systems of like sizes need no gather; their sums are those of the list, in the same order."""
    from alchemi_jax.models import pair
    from alchemi_jax.neighbors import extended_coordinates

    monkeypatch.setattr(pair, "FEWEST", 1)
    structures = [cluster(seed, n) for seed, n in enumerate((13, 12, 13, 11))]
    for atoms in structures:
        atoms.symbols[::3] = "Kr"
    batch = Batch.from_ase(structures, atom_capacity=53)
    model = LennardJones(epsilon={"Ar": 0.0104, "Kr": 0.0140}, sigma={"Ar": 3.4, "Kr": 3.65}, cutoff=cutoff)
    neighbors = neighbors_of(model, batch)
    rows = pair._rows_of(batch, neighbors)
    assert rows is not None
    own = jax.tree.map(lambda v: jnp.concatenate([v, v[:2]]), model.atom_parameters(batch))
    extended = extended_coordinates(batch, neighbors)
    there = pair._side_by_side(model, extended, own, rows, virial)
    for a, b in zip(there, pair._slots(model, extended, own, neighbors, virial), strict=True):
        np.testing.assert_array_equal(a[: batch.num_atoms], b[: batch.num_atoms])
    unlike = Batch.from_ase([*structures, cluster(5, 2), cluster(6, 3)])
    periodic = Batch.from_ase([crystal(0), crystal(1)])
    for other in (unlike, periodic):
        assert pair._rows_of(other, neighbors_of(model, other)) is None
