"""Graph models: what they see of a batch, and their forces and stress."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import cluster, crystal, zoo

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.errors import UserCodeError
from alchemi_jax.models import AbstractGraphModel, LennardJones, evaluate
from alchemi_jax.models.chunks import Rows, sum_chunks, sum_rows
from alchemi_jax.models.graph import make_graph
from alchemi_jax.neighbors import Requirements, allocate


CUTOFF, INNER, LONG = 5.0, 4.2, 7.0


class Pairs(AbstractGraphModel):
    """Lennard-Jones as a graph model, with all that a graph may have."""

    cutoff: float = CUTOFF
    inner_cutoff: float = INNER
    long_cutoff: float = LONG
    reverse_edges = True
    per_atom = True

    @property
    def elements(self):
        return (36, 18, 10, 54)

    def node_energies(self, graph):
        s6 = (3.4**2 / jnp.sum(graph.vectors**2, axis=1)) ** 3
        pair = jnp.where(graph.edge_mask, 2 * 0.0104 * (s6 * s6 - s6), 0)
        return jax.ops.segment_sum(pair, graph.receivers, len(graph.species))


@pytest.fixture(scope="module")
def case():
    structures = [a for a in zoo().values() if set(a.numbers) <= {10, 18, 36, 54}]
    batch = Batch.from_ase(structures)
    model = Pairs()
    neighbors = allocate(batch, model.requirements)
    return batch, model, neighbors, eqx.filter_jit(make_graph)(model, batch, neighbors)


def test_forces_and_stress_through_edge_vectors_are_those_of_the_pair_kernel(case):
    batch, model, neighbors, _ = case
    other = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF)
    run = eqx.filter_jit(lambda m, n: m.evaluate(batch, n, stress=True))
    for a, b in zip(
        jax.tree.leaves(run(model, neighbors)),
        jax.tree.leaves(run(other, allocate(batch, CUTOFF))),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_triplets_are_all_pairs_of_bonds_at_one_atom(case):
    _batch, _, _, graph = case
    t, edges = graph.triplets, graph.edges
    mask = np.asarray(edges.mask)
    inner = np.flatnonzero(mask & (np.asarray(edges.distances) <= INNER))
    bonds = np.asarray(t.bonds)[np.asarray(t.bond_mask)]
    np.testing.assert_array_equal(bonds, inner)
    receivers = np.asarray(edges.receivers)
    expected = {
        (a, b)
        for atom in np.unique(receivers[inner])
        for a in inner[receivers[inner] == atom]
        for b in inner[receivers[inner] == atom]
        if a != b
    }
    used = np.asarray(t.mask)
    all_bonds = np.asarray(t.bonds)
    first, second = all_bonds[np.asarray(t.first)[used]], all_bonds[np.asarray(t.second)[used]]
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert (np.diff(np.asarray(t.first)[used]) >= 0).all()
    np.testing.assert_array_equal(np.asarray(t.bond_of_edge)[bonds], np.arange(len(bonds)))


def test_rows_of_edges_long_edges_and_reverse(case):
    batch, _model, _neighbors, graph = case
    edges, n = graph.edges, batch.atom_capacity
    rows = np.asarray(graph.per_atom)
    for atom in range(n):
        own = rows[atom][rows[atom] < len(edges.mask)]
        np.testing.assert_array_equal(own, np.flatnonzero(np.asarray(edges.receivers) == atom))
    long_list = allocate(batch, Requirements(LONG, edges=True)).edges
    assert int(graph.long_edges.mask.sum()) == int(long_list.mask.sum())
    back = np.asarray(edges.vectors)[np.asarray(edges.reverse)]
    real = np.asarray(edges.mask)
    np.testing.assert_allclose(back[real], -np.asarray(edges.vectors)[real], atol=1e-12)
    padding = ~real
    assert padding.any()
    assert (np.asarray(edges.distances)[padding] > LONG).all()
    assert (np.asarray(graph.species)[: batch.num_atoms] == 1).sum() == (batch.numbers == 18).sum()


def test_parts_of_a_sum_see_edges_within_their_own_cutoffs(case):
    """The list is made for the largest of each; a part with a shorter one gets the others as padding."""
    batch, model, neighbors, _graph = case
    short = dataclasses.replace(model, cutoff=4.5, inner_cutoff=4.0, long_cutoff=6.0)
    graph_of = eqx.filter_jit(lambda n: make_graph(short, batch, n))
    own = graph_of(allocate(batch, short.requirements))
    shared = graph_of(allocate(batch, (model + short).requirements))
    for of in (lambda g: g.edges, lambda g: g.long_edges):
        a, b = of(own), of(shared)
        np.testing.assert_array_equal(
            np.asarray(a.vectors)[np.asarray(a.mask)], np.asarray(b.vectors)[np.asarray(b.mask)]
        )
    assert int(own.triplets.mask.sum()) == int(shared.triplets.mask.sum())
    forces = eqx.filter_jit(lambda m, n: m.evaluate(batch, n).forces)
    both = forces(model + short, allocate(batch, (model + short).requirements))
    alone = forces(model, neighbors) + forces(short, allocate(batch, short.requirements))
    np.testing.assert_allclose(both, alone, atol=1e-10)


def test_all_capacities_grow_in_a_run():
    """A dilute gas falls together: edges, bonds, triplets, rows and long edges become many more."""
    atoms = cluster(0, 13, 0.0)
    atoms.positions *= 1.9
    atoms.set_velocities(-0.05 * (atoms.positions - atoms.positions.mean(axis=0)))
    batch = Batch.from_ase(atoms)
    engine = NVE(model=Pairs(), dt=10.0, n_steps=30)
    state = engine.init(batch)
    out = engine.advance(state, 30)
    before, after = dataclasses.asdict(state.neighbors.sizes), dataclasses.asdict(out.neighbors.sizes)
    assert {k for k in after if after[k] > before[k]} >= {"edges", "bonds", "triplets", "per_atom"}
    pair = NVE(model=LennardJones(epsilon=0.0104, sigma=3.4, cutoff=CUTOFF), dt=10.0, n_steps=30)
    np.testing.assert_allclose(out.batch.positions, pair.run(batch).positions, atol=1e-8)


class Odd(AbstractGraphModel):
    cutoff: float = CUTOFF

    def node_energies(self, graph):
        return graph.distances


def test_what_is_not_one_energy_per_atom_is_refused_by_name():
    with pytest.raises(UserCodeError, match=r"Odd\.node_energies returned .* the energy of each atom"):
        evaluate(Odd(), crystal(0, 1))
    with pytest.raises(ValueError, match=r"Pairs .*Cu"):
        evaluate(Pairs(), Atoms("Cu"))
    batch = Batch.from_ase(crystal(0, 1))
    neighbors = allocate(batch, CUTOFF)
    with pytest.raises(ValueError, match=r"needs a list with edges: neighbors\.allocate"):
        Pairs().energy(batch, neighbors)


@pytest.mark.parametrize("rows", [192, 100], ids=["chunks", "one chunk"])
def test_chunks_equal_whole_arrays_with_all_derivatives(rows):
    keys = jax.random.split(jax.random.key(0), 5)
    table, values = jax.random.normal(keys[0], (7, 3)), jax.random.normal(keys[1], (rows,))
    index, target = (jax.random.randint(k, (rows,), 0, 7) for k in keys[2:4])
    used = jnp.array(rows - 70)
    weight = jax.random.normal(keys[4], (3, 3))
    live = (jnp.arange(rows) < used)[:, None]

    def function(w, gathered, v):
        out = jnp.tanh(gathered[0] @ w + v[:, None])
        return out, out * 2

    def total(add_up, w, t, v):
        rows = Rows((t,), (index,), jnp.where(live[:, 0], v, 0), jnp.where(live[:, 0], target, 7), used)
        sums, kept = add_up(function, 7, w, rows)
        return jnp.sum(sums**2) + jnp.sum(jnp.where(live, kept, 0) ** 3)

    def slopes(add_up):
        first = jax.grad(lambda *a: total(add_up, *a), argnums=(0, 1, 2))
        second = jax.grad(lambda w, t: jnp.sum(first(w, t, values)[1] ** 2), argnums=(0, 1))
        only_table = jax.grad(lambda t: total(add_up, weight, t, values))(table)
        return first(weight, table, values), second(weight, table), only_table

    for a, b in zip(
        jax.tree.leaves(jax.jit(lambda: slopes(sum_chunks))()),
        jax.tree.leaves(jax.jit(lambda: slopes(sum_rows))()),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
