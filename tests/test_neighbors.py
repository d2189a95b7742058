"""The neighbor list, pair by pair, against that of ASE; when it is due; vmap."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from conftest import cluster, crystal, zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.neighbors import (
    ListSizes,
    allocate,
    due,
    empty_list,
    extended_positions,
    grow,
    guess_sizes,
    pair_vectors,
    resized,
    update,
)


@eqx.filter_jit
def make(batch, cutoff, skin, sizes):
    return update(batch, empty_list(batch, cutoff, skin, sizes))


def listed(batch, cutoff, skin=0.5, sizes=None, builder=None):
    sizes = sizes or guess_sizes(batch, cutoff, skin, builder=builder)
    while (found := make(batch, cutoff, skin, sizes)).overflow:
        sizes = grow(sizes, np.asarray(found.needs))
    return found


@eqx.filter_jit
def _pairs(batch, neighbors):
    return *pair_vectors(batch, neighbors), neighbors.neighbor_atom()


def pairs_of(batch, neighbors):
    """All pairs within the cutoff as sorted rows: system, i, j, vector."""
    *vectors, j = _pairs(batch.replace(meta=None), neighbors)
    x, y, z, mask, j = (np.asarray(v) for v in (*vectors, j))
    k, i = np.nonzero(mask)
    vectors = np.stack([x[k, i], y[k, i], z[k, i]], axis=1)
    return sorted((int(a), int(b), *np.round(v, 6)) for a, b, v in zip(i, j[k, i], vectors, strict=True))


def pairs_by_ase(structures, cutoff):
    out, offset = [], 0
    for atoms in structures:
        i, j, d = neighbor_list("ijD", atoms, cutoff + 1e-9)
        out += [(int(a) + offset, int(b) + offset, *np.round(v, 6)) for a, b, v in zip(i, j, d, strict=True)]
        offset += len(atoms)
    return sorted(out)


def close(ours, theirs):
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=2e-6)


BUILDERS = ["brute force", "cell list"]


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("cutoff", [4.0, 9.0])
def test_equals_ase_on_every_kind_of_geometry(cutoff, builder):
    """Systems of very unequal sizes, and of equal ones, which take another way through groups."""
    several = [[*zoo().values(), crystal(5, 3)], [crystal(3, 2), crystal(4, 2)]]
    for structures in several if cutoff == 4.0 else several[:1]:
        batch = Batch.from_ase(structures)
        found = listed(batch, cutoff, builder=builder)
        assert bool(found.sizes.groups) == (builder == "cell list")
        close(pairs_of(batch, found), pairs_by_ase(structures, cutoff))


@st.composite
def cells(draw):
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 9, 3)) @ (np.eye(3) + np.triu(rng.uniform(-1.2, 1.2, (3, 3)), 1))
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    n = int(rng.integers(1, 8))
    return Atoms(
        f"Ar{n}",
        cell=cell @ q * rng.choice([-1, 1]),
        pbc=rng.integers(0, 2, 3).astype(bool),
        scaled_positions=rng.uniform(-1.5, 2.5, (n, 3)),
    )


#: For all of them, so that they share compiled code.
ROOMY = {
    "brute force": ListSizes(neighbors=256, images=4096, candidates=2048, groups=0),
    "cell list": ListSizes(neighbors=256, images=4096, candidates=2048, groups=32),
}


@pytest.mark.parametrize("builder", BUILDERS)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(structures=st.lists(cells(), min_size=4, max_size=4))
def test_equals_ase_on_200_random_cells(builder, structures):
    """Triclinic, left-handed, thin, with atoms far outside, periodic along any of the directions."""
    batch = Batch.from_ase(structures, atom_capacity=28, system_capacity=4)
    # Names and info are part of the structure: without them all examples share compiled code.
    batch = dataclasses.replace(batch, largest=8, meta=None)
    close(pairs_of(batch, listed(batch, 5.0, sizes=ROOMY[builder])), pairs_by_ase(structures, 5.0))


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("skin", [0.0, 0.5])
def test_a_pair_exactly_at_the_cutoff_counts(builder, skin):
    """Of molecules, of more than those that list all pairs, and across the border of a cell."""
    line = Atoms("Ar40", positions=np.arange(40)[:, None] * np.array([[0, 0, 5.0]]))
    ring = Atoms(
        "Ar3", positions=np.arange(3)[:, None] * np.array([[5.0, 0, 0]]), cell=[15, 40, 40], pbc=True
    )
    structures = [Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 5.0]]), line, ring]
    batch = Batch.from_ase(structures)
    assert len(pairs_of(batch, listed(batch, 5.0, skin, builder=builder))) == 2 + 78 + 6


@pytest.mark.full_xla
@pytest.mark.parametrize("builder", ["brute force", "cell list"])
def test_atoms_on_the_faces_of_slightly_skewed_cells(builder):
    """Rounding decides on which side of a face such an atom is: in all kernels alike, or it would have an
    image in its own place and lack one elsewhere."""
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(60):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
        skew = np.diag([0.7, 1.3, 1.1]) @ (np.eye(3) + 1e-5 * rng.normal(size=(3, 3)))
        atoms.set_cell(atoms.cell.array @ skew, True)
        structures.append(atoms)
    batch = Batch.from_ase(structures)
    found = allocate(batch, 6.0, 0.5, builder=builder)
    assert pairs_of(batch, found) == pairs_by_ase(structures, 6.0)


def test_atoms_flung_far_apart_need_few_cells():
    """A free system as wide as a float goes has no more cells than numbers for them."""
    far = Atoms("Ar40", positions=np.random.default_rng(0).uniform(-1e7, 1e7, (40, 3)))
    far.positions[7] = far.positions[3] + 2.0
    batch = Batch.from_ase([far, crystal(0, 2)])
    found = listed(batch, 5.0, builder="cell list")
    assert [p[:2] for p in pairs_of(batch, found) if p[0] < 40] == [(3, 7), (7, 3)]


@pytest.mark.parametrize("builder", BUILDERS)
def test_single_precision_loses_no_pair(builder):
    structures = [crystal(0, 3), crystal(1, 4), cluster(3)]
    for atoms in structures:
        atoms.positions = np.float32(atoms.positions) + np.float32(100)
    batch = Batch.from_ase(structures, dtype="float32")
    ours = {p[:2] for p in pairs_of(batch, listed(batch, 6.0, 0.0, builder=builder))}
    certain = {p[:2] for p in pairs_by_ase(structures, 6.0 - 1e-3)}
    assert certain <= ours <= {p[:2] for p in pairs_by_ase(structures, 6.0 + 1e-3)}


def test_due_is_never_late():
    """Random walks and strains: whenever the list is not due, no pair within the cutoff is missing."""
    structures = [crystal(0, 2, 0.1), crystal(1, 1, 0.1), cluster(0)]
    batch = Batch.from_ase(structures)
    neighbors = listed(batch, 5.5, 1.0)
    is_due, renew = eqx.filter_jit(due), eqx.filter_jit(update)
    rng = np.random.default_rng(0)
    seen = np.zeros(3, int)
    for size in np.linspace(0.0, 0.35, 12):
        moved = []
        for atoms in structures:
            a = atoms.copy()
            if a.pbc.all():
                a.set_cell(a.cell.array @ (np.eye(3) + rng.normal(0, size / 25, (3, 3))), scale_atoms=True)
            a.positions += rng.normal(0, size / 2, a.positions.shape)
            moved.append(a)
        b = batch.replace(
            positions=jnp.asarray(
                np.concatenate([*[a.positions for a in moved], batch.positions[batch.num_atoms :]])
            ),
            cell=jnp.asarray(np.stack([a.cell.array for a in moved])),
        )
        stale = np.asarray(is_due(b, neighbors))
        assert int(renew(b, neighbors).builds - neighbors.builds) == stale.any()
        renewed = renew(b, dataclasses.replace(neighbors, complete=jnp.ones(3, bool)))
        truth = pairs_by_ase(moved, 5.5)
        ours = pairs_of(b, renewed)
        owner = np.asarray(batch.batch_idx)
        for s in np.flatnonzero(~stale):
            seen[s] += 1
            close([p for p in ours if owner[p[0]] == s], [p for p in truth if owner[p[0]] == s])
    assert (seen > 1).all()
    assert seen[:2].max() < 12


def test_a_wrapped_atom_is_due_and_a_lost_one_is_not():
    batch = Batch.from_ase(crystal(0, 2))
    neighbors = listed(batch, 5.0)
    assert not due(batch, neighbors).any()
    wrapped = batch.replace(positions=batch.positions.at[3].add(batch.cell[0, 0]))
    assert due(wrapped, neighbors).all()
    lost = batch.replace(positions=batch.positions.at[3].set(jnp.nan))
    assert not due(lost, neighbors).any()


@pytest.mark.cheap_xla
def test_systems_that_are_not_due_keep_their_sums():
    """A rebuild that a batch mate asked for, or a larger buffer, reorders nothing of the others."""
    batch = Batch.from_ase([crystal(0, 2), crystal(1, 2)])
    neighbors = listed(batch, 5.0)
    drifted = batch.replace(positions=batch.positions + 0.01)
    moved = drifted.replace(positions=drifted.positions.at[0].add(2.0))
    again = eqx.filter_jit(update)(moved, neighbors)
    assert int(again.builds) == int(neighbors.builds) + 1
    sizes = dataclasses.replace(neighbors.sizes, neighbors=99, images=3000)
    roomy = eqx.filter_jit(update)(drifted, resized(neighbors, sizes))
    mates = slice(32, 64)
    a = extended_positions(drifted, neighbors)[neighbors.index[:, mates]]
    b = extended_positions(moved, again)[again.index[:, mates]]
    np.testing.assert_array_equal(a, b)
    c = extended_positions(drifted, roomy)[roomy.index[: neighbors.slots, mates]]
    np.testing.assert_array_equal(a, c)


def test_overflow_says_what_is_needed():
    batch = Batch.from_ase(crystal(0, 2))
    enough = listed(batch, 6.0)
    small = dataclasses.replace(enough.sizes, neighbors=4)
    found = make(batch, 6.0, 0.5, small)
    assert found.overflow
    assert int(found.needs[0]) == int(enough.used)
    assert grow(small, np.asarray(found.needs)).neighbors >= int(enough.used)


# Nobody runs this code on a CPU.
@pytest.mark.cheap_xla
@pytest.mark.parametrize("builder", BUILDERS)
def test_accelerators_make_the_same_list(builder, monkeypatch):
    """They have a way without loops; also where there are too few slots."""
    structures = [*zoo().values(), cluster()]
    batch = Batch.from_ase(structures)
    enough = listed(batch, 5.0, builder=builder).sizes
    sizes = [enough, dataclasses.replace(enough, neighbors=5)]
    wanted = [make(batch, 5.0, 0.5, s) for s in sizes]

    def accelerated(*arguments, cpu, default):
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", accelerated)

    @jax.jit
    def again(batch):
        return [update(batch, empty_list(batch, 5.0, 0.5, s)) for s in sizes]

    for a, b in zip(wanted, again(batch), strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        np.testing.assert_array_equal(a.needs, b.needs)
        assert bool(a.overflow) == bool(b.overflow)


def test_free_systems_have_no_images_and_a_periodic_one_among_them_is_noticed():
    """Where no system is periodic all that is about cells is left out: a list made for such asks for room
    when one is, though its images are all out of reach."""
    lonely = cluster(0)
    lonely.set_cell(np.eye(3) * 60)
    free = Batch.from_ase([lonely, cluster(1)])
    lonely.pbc = True
    boxed = Batch.from_ase([lonely, cluster(1)])
    found = listed(free, 5.0)
    assert not found.sizes.periodic
    close(pairs_of(free, found), pairs_by_ase(free.to_ase(), 5.0))
    assert guess_sizes(boxed, 5.0, 0.5).periodic
    renewed = update(boxed, found)
    assert renewed.overflow
    assert int(renewed.needs[1]) > found.sizes.images
    close(pairs_of(boxed, listed(boxed, 5.0)), pairs_by_ase(boxed.to_ase(), 5.0))


def test_update_under_vmap_equals_a_loop():
    batch = Batch.from_ase([crystal(0, 1), cluster(0)])
    neighbors = listed(batch, 5.0)
    steps = jnp.array([0.0, 0.01, 0.6])

    def renewed(step):
        b = batch.replace(positions=batch.positions + step * jnp.sin(jnp.arange(3.0))[None])
        return update(b, neighbors), extended_positions(b, update(b, neighbors))

    mapped = jax.jit(jax.vmap(renewed))(steps)
    for i, step in enumerate(steps):
        alone = jax.jit(renewed)(step)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(mapped), strict=True):
            np.testing.assert_allclose(b[i], a, atol=1e-12)
    assert mapped[0].builds.tolist() == [1, 1, 2]


@pytest.mark.parametrize("builder", ["brute force", "cell list"])
def test_an_engine_takes_a_builder(lj, builder):
    """The same path whoever makes the list, through rebuilds."""
    batch = Batch.from_ase([crystal(0), crystal(1)])
    engine = NVE(model=lj, dt=4.0)
    state = engine.init(batch, builder=builder)
    assert state.neighbors.sizes.builder == builder
    chosen = engine.advance(engine.init(batch), 20)
    state = engine.advance(state, 20)
    assert state.neighbors.sizes.builder == builder
    np.testing.assert_allclose(state.batch.positions, chosen.batch.positions, atol=1e-10)
    with pytest.raises(ValueError, match=r"builder is 'brute force', 'cell list', 'warp' or None, not 'x'"):
        engine.init(batch, builder="x")
