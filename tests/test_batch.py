"""AtomicData and Batch: the way in and out, levels, capacities, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import cluster, crystal, zoo
from test_sinks import check, rich

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import FIRE, NVE
from alchemi_jax.models import LennardJones
from alchemi_jax.systems.capacity import round_up
from alchemi_jax.systems.segments import any_by_system, max_by_system, sum_by_system


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


def test_round_trip_keeps_everything():
    structures = rich()
    copies = [a.copy() for a in structures]
    batch = Batch.from_ase(structures)
    for a, b, untouched in zip(batch.to_ase(), structures, copies, strict=True):
        check(a, b)
        assert untouched == b
        assert a.calc is None


def test_results_are_neither_taken_over_nor_invented():
    atoms = cluster(0, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    batch = Batch.from_ase(atoms).take()
    assert np.isnan(batch.energy).all()
    assert np.isnan(batch.forces).all()
    assert np.isnan(batch.stress).all()


def test_charge_and_spin():
    atoms = cluster(0, 3)
    atoms.info |= {"charge": -1, "spin": 3}
    batch = Batch.from_ase([atoms, cluster(1, 2)])
    assert batch.take().charge.tolist() == [-1, 0]
    assert batch.take().spin.tolist() == [3, 1]
    assert batch.to_ase()[0].info == {"charge": -1.0, "spin": 3.0}
    assert batch.to_ase()[1].info == {}


def test_counts_masks_and_levels():
    batch = Batch.from_ase([cluster(0, 1), cluster(1, 1)], atom_capacity=5, system_capacity=4)
    assert (batch.num_systems, batch.num_atoms) == (2, 2) == (batch.num_graphs, batch.num_nodes)
    assert batch.atom_mask.tolist() == [True, True, False, False, False]
    assert batch.system_mask.tolist() == [True, True, False, False]
    assert batch.batch_idx.tolist() == [0, 1, 4, 4, 4]
    assert batch.level("positions") == "atom"
    assert batch.level("energy") == "system"
    with pytest.raises(KeyError, match="no field 'magic'; it has positions"):
        batch.replace(magic=1)


def test_select_follows_levels_not_shapes():
    """One-atom systems: as many atoms as systems."""
    data = [
        AtomicData(positions=[[i, 0, 0]], numbers=[18], atom_extras={"a": [i]}, system_extras={"s": float(i)})
        for i in range(3)
    ]
    ours = Batch.from_data_list(data, atom_capacity=3, system_capacity=3)
    other = ours.replace(
        positions=ours.positions + 10, a=ours["a"] + 10, s=ours["s"] + 10, energy=jnp.ones(3)
    )
    mixed = ours.select(jnp.array([True, False, True]), other)
    assert mixed.positions[:, 0].tolist() == [0, 11, 2]
    assert mixed["a"].tolist() == [0, 11, 2]
    assert mixed["s"].tolist() == [0, 11, 2]
    assert np.isnan(mixed.energy[0])
    assert mixed.energy[1] == 1


def test_take_and_concatenate_are_inverse():
    structures = list(zoo().values())
    batch = Batch.from_ase(structures)
    assert batch.take([]).num_systems == 0
    for odd in (-1, 8):
        with pytest.raises(IndexError, match=rf"^the batch has 8 systems, there is no system {odd}\.$"):
            batch.take([2, odd, 3])
    with pytest.raises(IndexError, match=r"^the mask has 5 entries, but the batch has 8 systems\.$"):
        batch.take(np.ones(5, bool))
    parts = [batch.take([0, 3]), batch.take(np.arange(8) == 5), batch.take([7])]
    joined = Batch.concatenate(parts)
    for a, i in zip(joined.to_ase(), (0, 3, 5, 7), strict=True):
        np.testing.assert_array_equal(a.positions, structures[i].positions)
    assert joined.system_id[:4].tolist() == [0, 3, 5, 7]
    assert [joined.name_of(i) for i in range(2)] == [batch.name_of(0), batch.name_of(3)]


def test_similar_batches_have_the_same_shapes():
    shapes = {
        tuple(x.shape for x in jax.tree.leaves(Batch.from_ase([cluster(i, 13) for i in range(n)])))
        for n in (30, 31, 32)
    }
    assert len(shapes) == 1
    for n in (1, 7, 100, 3328, 3329):
        assert n <= round_up(n) <= max(n * 1.125, 8)


@pytest.mark.parametrize("sizes", [[13, 13, 12], [200, 1, 70, 3]], ids=["rows", "segments"])
def test_segment_reductions_equal_numpy(sizes):
    rng = np.random.default_rng(0)
    batch = Batch.from_ase([Atoms(f"Ar{n}", positions=rng.normal(size=(n, 3)) * 9) for n in sizes])
    values = rng.normal(size=(batch.atom_capacity, 2))
    parts = np.split(values[: sum(sizes)], np.cumsum(sizes)[:-1])
    n = len(sizes)
    np.testing.assert_allclose(
        sum_by_system(batch, jnp.asarray(values))[:n], [p.sum(0) for p in parts], rtol=1e-12
    )
    np.testing.assert_array_equal(
        max_by_system(batch, jnp.asarray(values[:, 0]), -jnp.inf)[:n],
        [p[:, 0].max() for p in parts],
    )
    np.testing.assert_array_equal(
        any_by_system(batch, jnp.asarray(values[:, 0] > 1.5))[:n], [(p[:, 0] > 1.5).any() for p in parts]
    )
    assert not np.any(sum_by_system(batch, jnp.asarray(values))[n:])


def test_float32_sums_keep_their_digits():
    """100,000 equal numbers: a running sum in float32 would lose four digits."""
    batch = Batch.from_ase(Atoms("Ar100000", positions=np.zeros((100_000, 3))), dtype=np.float32)
    total = sum_by_system(batch, jnp.full(batch.atom_capacity, 0.1, jnp.float32))[0]
    assert abs(float(total) / (100_000 * float(np.float32(0.1))) - 1) < 4e-7


def bad(**changes):
    fields = dict(positions=np.array([[0, 0, 0], [3, 3, 3]]), numbers=[18, 18], name="mine")
    return lambda: AtomicData(**{**fields, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad(positions=[[0, 0, np.nan], [1, 1, 1]]), "mine: positions of atom 0 is not finite"),
        (bad(positions=np.zeros((3, 3))), r"mine: positions has shape \(3, 3\), expected \(2, 3\)"),
        (bad(numbers=[18, 300]), "mine: numbers must be atomic numbers"),
        (bad(pbc=True), "mine: cell has no volume along its periodic directions"),
        (bad(pbc=True, cell=np.ones((3, 3))), "mine: cell has no volume"),
        (bad(masses=[1.0, 0.0]), "mine: masses must be positive, that of atom 1"),
        (bad(positions=[], numbers=[]), "mine has no atoms"),
        (lambda: Batch.from_ase([]), "at least one system"),
        (lambda: Batch.from_ase([cluster(0, 3), 5]), "entry 1 is a int"),
        (lambda: Batch.from_ase(cluster(0, 3), atom_capacity=2), "atom_capacity is 2, but there are 3"),
        (lambda: Batch.from_ase(cluster(0, 3), dtype=np.int32), "dtype must be a float type, not int32"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_float64_without_x64_is_refused():
    with jax.enable_x64(False), pytest.raises(ValueError, match="jax_enable_x64"):
        Batch.from_ase(cluster(0, 3), dtype=np.float64)
    with jax.enable_x64(False):
        assert Batch.from_ase(cluster(0, 3)).dtype == np.float32


def test_repr_says_what_is_in_it():
    text = repr(Batch.from_ase([cluster(0), crystal(0, 1)]))
    assert text.startswith("Batch(2 systems, 17 atoms; 0 converged, 0 failed")


def test_an_array_that_is_called_like_a_field_hides_no_field(lj):
    """Files come with arrays `velocities` or `forces`: they go through untouched, and the run is the same."""
    atoms = cluster(0, 5)
    wanted = NVE(model=lj, dt=2.0, n_steps=20).run(Batch.from_ase(atoms)).take()
    for name in ("velocities", "forces", "energy"):
        odd = atoms.copy()
        odd.set_array(name, np.full(5, 7.0))
        odd.info["status"] = 3
        out = NVE(model=lj, dt=2.0, n_steps=20).run(Batch.from_ase(odd))
        np.testing.assert_array_equal(out.take().positions, wanted.positions)
        np.testing.assert_array_equal(out.take()[name], wanted[name])
        assert out.keys().count(name) == 1
        assert out.to_ase()[0].arrays[name].tolist() == [7.0] * 5


def test_in_a_notebook_batches_and_engines_are_tables():
    """Names are escaped, many systems cut off, mapped batches told in a line."""
    batch = Batch.from_ase([cluster(i, 3) for i in range(12)], names=["<b>", *"abcdefghijk"])
    text = batch._repr_html_()
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert text.count("<tr>") == 12, "a head, ten systems, and how many more"
    assert "and 2 more" in text
    mapped = jax.vmap(lambda x: batch.replace(energy=batch.energy + x))(jnp.arange(2.0))
    assert "mapped over" in mapped._repr_html_()
    engine = FIRE(model=LennardJones(epsilon=0.01, sigma=3.4), n_steps=7)
    assert "<td>n_steps</td><td>7</td>" in engine._repr_html_()
