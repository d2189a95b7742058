"""Edges for graph models: against ASE, padding, derivatives, vmap."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal, zoo
from test_neighbors import close, listed, pairs_by_ase

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, Sampler
from alchemi_jax.models import AbstractModel, LennardJones
from alchemi_jax.neighbors import Requirements, allocate, edge_capacity, edge_list, update
from alchemi_jax.systems.segments import sum_by_system


CUTOFF = 6.0
make = eqx.filter_jit(edge_list)


@pytest.fixture(scope="module")
def case():
    structures = list(zoo().values())
    batch = Batch.from_ase(structures)
    return structures, batch, listed(batch, CUTOFF)


@pytest.mark.parametrize("roomy", [True, False], ids=["all slots", "compact"])
def test_edges_equal_ase(case, roomy):
    structures, batch, neighbors = case
    capacity = None if roomy else edge_capacity(batch, neighbors)
    edges = make(batch, neighbors, capacity)
    assert not edges.overflow
    n = int(edges.mask.sum())
    if not roomy:
        assert n < capacity < 1.4 * n
        assert edges.mask[:n].all()
    assert (np.diff(edges.receivers[edges.mask]) >= 0).all()
    vectors = edges.vectors(batch)
    ours = [
        (int(i), int(j), *np.round(v, 6))
        for i, j, v, m in zip(edges.receivers, edges.senders, vectors, edges.mask, strict=True)
        if m
    ]
    close(sorted(ours), pairs_by_ase(structures, CUTOFF))


def test_padding_points_nowhere_and_is_far(case):
    _, batch, neighbors = case
    edges = make(batch, neighbors, edge_capacity(batch, neighbors, room=1.5))
    padding = ~np.asarray(edges.mask)
    assert padding.any()
    assert (np.asarray(edges.senders)[padding] == batch.atom_capacity).all()
    assert (np.asarray(edges.receivers)[padding] == batch.atom_capacity).all()
    assert not np.asarray(edges.shifts)[padding].any()
    assert (np.linalg.norm(edges.vectors(batch)[padding], axis=1) > CUTOFF).all()
    degree = jax.ops.segment_sum(jnp.ones(len(padding)), edges.receivers, batch.atom_capacity)
    assert int(degree.sum()) == int(edges.mask.sum())


def test_too_small_a_capacity_says_so(case):
    _, batch, neighbors = case
    few = make(batch, neighbors, 32)
    assert few.overflow
    assert np.isnan(np.asarray(few.vectors(batch))).all(), "no wrong number leaves it"
    lost = dataclasses.replace(neighbors, overflow=jnp.ones((), bool))
    assert make(batch, lost, None).overflow


class ByEdges(AbstractModel):
    """Lennard-Jones as a graph model would write it: it names no capacity."""

    cutoff: float = eqx.field(static=True, default=CUTOFF)

    @property
    def requirements(self):
        return Requirements(self.cutoff, self.skin, reverse_edges=True)

    def energy(self, batch, neighbors):
        edges = neighbors.edges
        r2 = jnp.sum(edges.vectors(batch) ** 2, axis=1)
        s6 = (3.4**2 / r2) ** 3
        pair = jnp.where(edges.mask, 2 * 0.0104 * (s6 * s6 - s6), 0)
        return sum_by_system(batch, jax.ops.segment_sum(pair, edges.receivers, batch.atom_capacity))


def test_a_model_on_edges_has_the_forces_and_stress_of_the_pair_kernel(case):
    _, batch, _ = case
    model = ByEdges()
    neighbors = allocate(batch, model.requirements)
    evaluate = eqx.filter_jit(lambda m: m.evaluate(batch, neighbors, stress=True))
    a = evaluate(model)
    b = evaluate(LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


def test_edges_under_vmap_equal_a_loop():
    batch = Batch.from_ase([crystal(0, 1), cluster(0)])
    neighbors = listed(batch, CUTOFF)
    capacity = edge_capacity(batch, neighbors)

    def of(step):
        moved = batch.replace(positions=batch.positions + step * jnp.sin(jnp.arange(3.0))[None])
        edges = edge_list(moved, neighbors, capacity)
        return edges, edges.vectors(moved)

    steps = jnp.array([0.0, 0.1])
    mapped = jax.jit(jax.vmap(of))(steps)
    for i, step in enumerate(steps):
        for a, b in zip(jax.tree.leaves(jax.jit(of)(step)), jax.tree.leaves(mapped), strict=True):
            np.testing.assert_allclose(b[i], a, atol=1e-12)


@pytest.mark.cheap_xla
def test_each_edge_knows_its_reverse(case):
    """Also in cells of one atom, where an atom is its own neighbor many times."""
    _, batch, _ = case
    neighbors = allocate(batch, CUTOFF, reverse_edges=True)
    edges = neighbors.edges
    mask, reverse = np.asarray(edges.mask), np.asarray(edges.reverse)
    np.testing.assert_array_equal(reverse[reverse], np.arange(len(reverse)))
    assert (reverse[mask] != np.arange(len(reverse))[mask]).all()
    assert mask[reverse[mask]].all()
    for a, b in ((edges.senders, edges.receivers), (edges.receivers, edges.senders)):
        np.testing.assert_array_equal(np.asarray(a)[reverse], b)
    np.testing.assert_array_equal(np.asarray(edges.shifts)[reverse], -np.asarray(edges.shifts))


def cold(seed, spread=0.0):
    """A dilute cluster of 20 atoms that falls together."""
    atoms = cluster(seed, 13, spread)
    atoms.positions *= 1.9
    return atoms


def test_room_for_edges_grows_in_runs_of_all_kinds():
    """Edges become many more than there were at the start; no model and no user names their number."""
    structures = [cold(i) for i in range(3)]
    for atoms in structures:
        atoms.set_velocities(-0.05 * (atoms.positions - atoms.positions.mean(axis=0)))
    batch = Batch.from_ase(structures)
    graph, pair = (
        NVE(model=model, dt=10.0, n_steps=30)
        for model in (ByEdges(), LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF))
    )
    state = graph.init(batch)
    out = graph.advance(state, 30)
    assert out.neighbors.sizes.edges > state.neighbors.sizes.edges
    expected = pair.run(batch)
    np.testing.assert_allclose(out.batch.positions, expected.positions, atol=1e-8)
    np.testing.assert_allclose(out.batch.energy, expected.energy, atol=1e-9)
    refilled = graph.run(sampler=Sampler(structures, max_systems=2)).take()
    np.testing.assert_allclose(refilled.positions, expected.take().positions, atol=1e-8)
    # In a loop of the user's own nothing can grow: the state says so, and there is no number.
    lost = jax.jit(lambda s: graph.loop(s, 30))(state)
    assert lost.overflow
    assert np.isnan(np.asarray(lost.batch.energy)).all()


def test_a_list_for_a_model_without_an_engine(case):
    """`allocate` finds the capacities, `update` follows the positions, in transforms too."""
    _, batch, _ = case
    model = ByEdges()
    neighbors = allocate(batch, model.requirements)

    def energy(shift):
        moved = batch.replace(positions=batch.positions * (1 + shift))
        return model.energy(moved, update(moved, neighbors))

    pair = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF)
    np.testing.assert_allclose(
        jax.jit(energy)(0.0), pair.energy(batch, allocate(batch, CUTOFF)), rtol=1e-9, atol=1e-12
    )
    with pytest.raises(ValueError, match=r"neighbors\.allocate chooses capacities on the host"):
        jax.jit(lambda b: allocate(b, CUTOFF))(batch)
    with pytest.raises(ValueError, match="without a cutoff needs no list"):
        allocate(batch, Requirements(None))
