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
from alchemi_jax.models import AbstractModel, LennardJones
from alchemi_jax.neighbors import edge_capacity, edge_list
from alchemi_jax.systems.segments import sum_by_system


CUTOFF = 6.0
make = eqx.filter_jit(edge_list)


@pytest.fixture(scope="module")
def case():
    structures = list(zoo().values())
    batch = Batch.from_ase(structures).replace(meta=None)
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
    assert make(batch, neighbors, 32).overflow
    lost = dataclasses.replace(neighbors, overflow=jnp.ones((), bool))
    assert make(batch, lost, None).overflow


class ByEdges(AbstractModel):
    """Lennard-Jones as a graph model would write it."""

    capacity: int = eqx.field(static=True)
    cutoff: float = eqx.field(static=True, default=CUTOFF)

    def energy(self, batch, neighbors):
        edges = edge_list(batch, neighbors, self.capacity)
        r2 = jnp.sum(edges.vectors(batch) ** 2, axis=1)
        s6 = (3.4**2 / r2) ** 3
        pair = jnp.where(edges.mask, 2 * 0.0104 * (s6 * s6 - s6), 0)
        return sum_by_system(batch, jax.ops.segment_sum(pair, edges.receivers, batch.atom_capacity))


def test_a_model_on_edges_has_the_forces_and_stress_of_the_pair_kernel(case):
    _, batch, neighbors = case
    model = ByEdges(capacity=edge_capacity(batch, neighbors))
    evaluate = eqx.filter_jit(lambda m: m.evaluate(batch, neighbors, stress=True))
    a = evaluate(model)
    b = evaluate(LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


def test_edges_under_vmap_equal_a_loop():
    batch = Batch.from_ase([crystal(0, 1), cluster(0)]).replace(meta=None)
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
