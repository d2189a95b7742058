"""Two places, two types: Batch and HostBatch, what reads them, and names that compiled code never sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal

from alchemi_jax import AtomicData, Batch, HostBatch, Outcome
from alchemi_jax.neighbors import guess_sizes
from alchemi_jax.systems import observables
from alchemi_jax.systems.batch import as_batch
from alchemi_jax.systems.capacity import batch_capacities, round_up, sizes_per_octave
from alchemi_jax.systems.levels import level_fields, unsafe_replace
from alchemi_jax.systems.metadata import Metadata


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


SIZES = (13, 4, 7, 2)


def named(seed=0, sizes=SIZES):
    structures = [cluster(seed + i, n) for i, n in enumerate(sizes)]
    for i, atoms in enumerate(structures):
        atoms.info["title"] = f"{seed} {i}"
        atoms.set_array("site", np.arange(len(atoms)))
        atoms.set_velocities(np.random.default_rng(seed + i).normal(0, 0.01, (len(atoms), 3)))
    return Batch.from_ase(structures, names=[f"{seed}-{i}" for i in range(len(sizes))])


def titles(batch):
    return [(m.name, m.info["title"]) for m in batch.meta]


@pytest.fixture(scope="module")
def batch():
    return named()


def same(a, b):
    for name, _ in level_fields(a):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))


# -- two types -----------------------------------------------------------------------------------


def test_padding_is_on_the_device_and_names_go_there_and_back(batch):
    host = batch.to_host()
    assert isinstance(host, HostBatch)
    assert not isinstance(host, Batch)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(host))
    assert (len(host.positions), len(host.energy)) == (26, 4)
    assert host.to_host() is host.take() is host
    back = Batch.from_host(host)
    assert isinstance(back, Batch)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back))
    same(back, batch)
    assert titles(back) == titles(host) == titles(batch)
    same(Batch.from_host(batch), batch)
    # A batch whose arrays were fetched is padded still, and is read in the same way.
    fetched = jax.device_get(batch)
    assert isinstance(fetched, Batch)
    same(fetched.to_host(), host)


@pytest.mark.parametrize("of", [lambda b: b, lambda b: b.to_host()], ids=["Batch", "HostBatch"])
def test_reading_as_a_person_expects(batch, of):
    it, host = of(batch), batch.to_host()
    assert len(it) == 4
    assert [len(system) for system in it] == list(SIZES)
    for row, system in enumerate(it):
        first = sum(SIZES[:row])
        np.testing.assert_array_equal(system.positions, host.positions[first : first + SIZES[row]])
        np.testing.assert_array_equal(system["site"], np.arange(SIZES[row]))
        assert system.cell.shape == (3, 3)
        assert (system.name, system.info["title"], system.system_id) == (f"0-{row}", f"0 {row}", row)
        assert "site" in dir(system)
    assert it[-1].name == it[3].name == it[np.int64(3)].name == "0-3"
    np.testing.assert_array_equal(it[1].to_ase().positions, batch.to_ase()[1].positions)
    for key in ([1, 3], np.array([False, True, False, True]), slice(1, None, 2), [-3, -1]):
        part = it[key]
        assert isinstance(part, HostBatch)
        same(part, batch.take([1, 3]))
        assert titles(part) == [("0-1", "0 1"), ("0-3", "0 3")]
    assert len(it[[]]) == len(it[5:]) == 0
    np.testing.assert_array_equal(host["energy"], host.energy)
    assert it["site"] is it.atom_extras["site"]
    for key, message in (
        (4, "has 4 systems, there is no system 4"),
        ([0, 9], "there is no system 9"),
        (np.ones(3, bool), "the mask has 3 entries, but the batch has 4 systems"),
        (1.5, "by a list of whole numbers"),
    ):
        with pytest.raises(IndexError, match=message):
            it[key]
    with pytest.raises(AttributeError, match="has no 'first_atom'"):
        _ = it[0].first_atom
    with pytest.raises(KeyError, match="no field 'magic'"):
        it["magic"]


def test_systems_that_were_read_make_batches(batch):
    small = [system for system in batch if len(system) < 10]
    again = Batch.from_data_list(small)
    for a, b in zip(again.to_ase(), batch.to_ase()[1:], strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert a.info == b.info
    for it in (
        batch,
        batch.to_host(),
        batch.to_ase(),
        batch.to_data_list(),
        list(batch),
        batch[0],
        batch[0].to_ase(),
    ):
        made = as_batch(it)
        assert isinstance(made, Batch)
        np.testing.assert_array_equal(made.to_host().positions[:13], batch.to_host().positions[:13])
    assert as_batch(batch) is batch
    for wrong in (5, [5], "file.xyz"):
        with pytest.raises(ValueError, match="systems are"):
            as_batch(wrong)


def test_observables_and_joins_take_either(batch):
    host = batch.to_host()
    for observable in (observables.fmax, observables.kinetic_energy, observables.temperature):
        np.testing.assert_allclose(observable(host), observable(batch)[:4], rtol=1e-12)
    both = HostBatch.concatenate([host[[0, 2]], host[[1]]])
    assert titles(both) == [("0-0", "0 0"), ("0-2", "0 2"), ("0-1", "0 1")]
    same(Batch.concatenate([batch, host]).to_host()[4:], host)
    nameless = jax.tree.map(lambda x: x, host)
    assert [m.name for m in HostBatch.concatenate([host[[1]], nameless[[3]]]).meta] == ["0-1", "system 0"]
    with pytest.raises(ValueError, match="one dtype with the same extras"):
        HostBatch.concatenate([host, Batch.from_ase(cluster(0)).to_host()])


def test_under_a_transform_a_sentence_says_what_to_do(batch):
    with pytest.raises(ValueError, match="read on the host"):
        jax.jit(lambda b: b[0].energy)(batch)
    with pytest.raises(TypeError, match="num_systems counts under transforms too"):
        jax.jit(lambda b: len(b))(batch)
    mapped = jax.vmap(lambda x: batch.replace(energy=batch.energy + x))(jnp.arange(2.0))
    with pytest.raises(ValueError, match=r"mapped over \(2,\): choose a lane first"):
        mapped.to_host()
    assert len(jax.tree.map(lambda x: x[0], mapped).to_host()) == 4
    with pytest.raises(TypeError, match="mapped over"):
        len(mapped)


# -- names ---------------------------------------------------------------------------------------


def test_names_never_compile_and_never_leak(batch):
    """One compilation for all names; what comes out has none, hence never those of another batch."""
    traced = []
    work = jax.jit(lambda b: traced.append(0) or b.replace(energy=b.energy + 1))
    other = named(20)
    for given in (batch, other, batch, batch.with_meta(other.meta), batch[[0, 1, 2, 3]]):
        given = Batch.from_host(given) if isinstance(given, HostBatch) else given
        out = work(given)
        assert not out.meta
        assert out.name_of(2) == "system 2"
        assert jax.tree.structure(out) == jax.tree.structure(given)
    assert len(traced) == 1
    lanes = jax.vmap(lambda x: batch.replace(energy=batch.energy + x))(jnp.arange(2.0))
    assert not lanes.meta
    for copied in (jax.tree.map(lambda x: x, batch), jax.device_put(batch), jax.device_get(batch)):
        assert not copied.meta
    for kept in (batch.replace(energy=batch.energy), unsafe_replace(batch, energy=batch.energy)):
        assert kept.meta is batch.meta
    assert dataclasses.replace(batch, meta=None).meta is jax.tree.map(lambda x: x, batch).meta


def test_names_go_with_selected_systems(batch):
    other = named(20)
    mask = jnp.array([True, False, True, False])
    mixed = batch.select(mask, other)
    assert titles(mixed) == [("0-0", "0 0"), ("20-1", "20 1"), ("0-2", "0 2"), ("20-3", "20 3")]
    np.testing.assert_array_equal(mixed.to_host()[1].positions, other.to_host()[1].positions)
    assert batch.select(mask, batch.replace(energy=batch.energy + 1)).meta is batch.meta
    assert not batch.select(mask, other.with_meta(None)).meta


def test_to_ase_brings_names_back_from_like(batch):
    out = jax.jit(lambda b: b.replace(positions=b.positions + 1))(batch)
    assert out.to_ase()[1].info == {}
    for row, atoms in enumerate(out.to_ase(like=batch)):
        assert atoms.info["title"] == f"0 {row}"
        np.testing.assert_array_equal(atoms.positions, batch.to_ase()[row].positions + 1)
    # By system_id: in another order, or some of them; from a HostBatch too.
    part = out.to_host()[[3, 1]]
    assert [d.name for d in part.to_data_list(like=batch.to_host())] == ["0-3", "0-1"]
    for like, message in (
        (out, "knows the names of its systems, this one does not"),
        (named(20, (13, 5, 7, 2)), "that of system_id 1 has 5 atoms there and 4 here"),
        (named(20, (13, 4, 7)), "has no system with system_id 3"),
        (batch.replace(system_id=jnp.zeros(4, jnp.int32)), "all system_id differ"),
    ):
        with pytest.raises(ValueError, match=message):
            out.to_ase(like=like)


def test_reasons_in_words(batch):
    ended = batch.replace(outcome=jnp.array([1, 2, 3, 4], jnp.int32)).with_reasons(
        {2: "Guard: too far", 3: "its energy is not finite", 1: "no reason to tell"}
    )
    host = jax.tree.map(lambda x: x, ended).to_host(meta=ended.meta)
    assert [system.outcome_text for system in host] == [
        "converged",
        "out of steps",
        "stopped: Guard: too far",
        "failed: its energy is not finite",
    ]
    assert "failed: its energy is not finite" in host._repr_html_()
    assert "out of steps" in repr(host[1])
    assert titles(ended) == titles(batch)
    assert [m.reason for m in ended.with_reasons({0: "new"}).meta] == ["new", "", "", ""]
    assert [m.name for m in batch.with_meta(None).with_reasons({1: "x"}).meta][1] == "system 1"
    assert Outcome.OUT_OF_STEPS.text == "out of steps"
    assert Metadata(batch.meta).of_rows(np.array([2])).filled(2)[1].name == "system 1"


# -- sizes ---------------------------------------------------------------------------------------


def test_twelve_similar_batches_compile_in_the_first_three():
    """Eight clusters of 1 to 27 atoms each time: one jit, of batches and the sizes of their lists."""
    rng = np.random.default_rng(0)
    work = jax.jit(lambda b, sizes: b.energy * sizes.neighbors, static_argnums=1)
    compiled = []
    for _ in range(12):
        counts = rng.integers(1, 28, 8)
        grid = np.array([[i % 3, i // 3 % 3, i // 9] for i in range(27)]) * 3.7
        data = [AtomicData(positions=grid[:n], numbers=np.full(n, 18), name="a cluster") for n in counts]
        batch = Batch.from_data_list(data)
        work(batch, guess_sizes(batch, 8.5, 1.0))
        compiled.append(work._cache_size())
    assert compiled[-1] <= 3
    assert compiled[2] == compiled[-1]


def test_capacities_are_few_and_waste_little():
    """The benchmarks' batches are not padded more than they were."""
    for counts, wanted in (
        ([13] * 256, (3328, 256, 13)),
        ([256] * 32, (8192, 32, 256)),
        ([4000], (4096, 1, 4096)),
    ):
        assert batch_capacities(np.array(counts)) == wanted
    capacities = [round_up(n, sizes_per_octave(n), 16) for n in range(1, 8000)]
    assert all(n <= c <= max(2 * n, 16) for n, c in enumerate(capacities, 1))
    assert all(c <= 1.125 * n for n, c in enumerate(capacities, 1) if n >= 2048)
    assert len({c for c in capacities if c <= 512}) <= 8
    assert sorted(capacities) == capacities


def test_capacities_can_be_pinned():
    atoms = [cluster(0, 5), cluster(1, 3)]
    batch = Batch.from_ase(atoms, atom_capacity=40, system_capacity=3, largest=11)
    assert (batch.atom_capacity, batch.system_capacity, batch.largest) == (40, 3, 11)
    assert Batch.from_data_list(batch.to_data_list(), largest=9).largest == 9
    assert Batch.from_host(batch.to_host(), largest=6).largest == 6
    for wrong, message in (
        ({"largest": 4}, "largest is 4, but there are 5 atoms in one system"),
        ({"atom_capacity": 7}, "atom_capacity is 7, but there are 8 atoms"),
        ({"system_capacity": 1}, "system_capacity is 1, but there are 2 systems"),
    ):
        with pytest.raises(ValueError, match=message):
            Batch.from_ase(atoms, **wrong)


def test_a_crystal_and_its_cell_are_read(batch):
    system = Batch.from_ase([crystal(0, 1), cluster(0)])[0]
    assert system.pbc.all()
    assert system.to_data().cell[0, 0] == 5.26
