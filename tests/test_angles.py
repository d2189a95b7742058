"""InvariantNetwork with angles: features by sums over pairs of neighbors in numpy; the laws of models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list

from alchemi_jax import Batch
from alchemi_jax.models import InvariantNetwork, evaluate
from alchemi_jax.neighbors import allocate, update


CUTOFF, M = 4.0, 2
MODEL = InvariantNetwork(
    ["Si", "C"],
    key=jax.random.key(0),
    cutoff=CUTOFF,
    gaussians=3,
    angular=M,
    hidden=(3,),
    energies=[-1.0, 2.0],
)


def structures():
    """A cell with images of itself, and the same cluster twice: turned, shifted, in another order."""
    rng = np.random.default_rng(0)
    cell = bulk("Si", "diamond", a=5.4)
    cell.symbols = ["Si", "C"]
    cell.positions += rng.normal(0, 0.2, (2, 3))
    cluster = Atoms("Si3C2", rng.uniform(0, 4.0, (5, 3)))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(5)
    return [cell, cluster, Atoms(cluster.symbols[order], cluster.positions[order] @ turn + 3.0)], turn, order


def by_numpy(atoms):
    """The features of each atom."""
    i, j, r, d = neighbor_list("ijdD", atoms, CUTOFF)

    def bells(number):
        c = np.linspace(0.5, CUTOFF, number)
        smooth = (1 + np.cos(np.pi * r / CUTOFF)) / 2
        return np.exp(-(((r[:, None] - c) / (c[1] - c[0])) ** 2) / 2) * smooth[:, None]

    kind = np.array(["SiC".index(s) // 2 for s in atoms.symbols])
    out = []
    for a in range(len(atoms)):
        mine = np.flatnonzero(i == a)
        of = [mine[kind[j[mine]] == k] for k in range(2)]
        distances = np.concatenate([bells(3)[rows].sum(axis=0) for rows in of])
        g = np.zeros((len(mine), 2 * M))
        for row, pair in enumerate(mine):
            g[row, M * kind[j[pair]] :][:M] = bells(M)[pair]
        u = d[mine] / r[mine][:, None]
        sums = [np.einsum("jc,kd,jk->cd", g, g, (u @ u.T) ** power) for power in (1, 2, 3)]
        upper = np.triu_indices(2 * M)
        out.append(np.concatenate([distances, *(s[upper] for s in sums)]))
    return np.array(out)


@pytest.mark.cheap_xla
def test_angles():
    atoms, turn, order = structures()
    batch = Batch.from_ase(atoms)
    neighbors = allocate(batch, MODEL.requirements)

    @eqx.filter_jit
    def run(positions, cell):
        moved = batch.replace(positions=positions, cell=cell)
        listed = update(moved, neighbors)
        return MODEL.features(moved, listed), MODEL.evaluate(moved, listed, stress=True)

    features, results = run(batch.positions, batch.cell)
    expected = np.concatenate([by_numpy(a) for a in atoms])
    assert features.shape[1] == MODEL.n_features == 2 * 3 + 3 * 10
    np.testing.assert_allclose(features[: len(expected)], expected, atol=1e-10)
    # Turned, shifted and in another order.
    np.testing.assert_allclose(results.energy[1], results.energy[2], rtol=1e-10)
    forces = np.asarray(results.forces)
    np.testing.assert_allclose(forces[7:12], forces[2:7][order] @ turn, atol=1e-9)
    # Derivatives of the energy along a direction, and with a strain.
    h, rng = 1e-5, np.random.default_rng(1)
    along = rng.normal(size=batch.positions.shape) * np.asarray(batch.atom_mask)[:, None]
    ends = [run(batch.positions + s * along, batch.cell)[1].energy.sum() for s in (h, -h)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), -(forces * along).sum(), rtol=1e-6)
    strain = rng.normal(size=(3, 3))
    strain = (strain + strain.T) / 2
    ends = []
    for s in (h, -h):
        f = jnp.asarray(np.eye(3) + s * strain)
        moved = jnp.einsum("na,ab->nb", batch.positions, f), jnp.einsum("sia,ab->sib", batch.cell, f)
        ends.append(run(*moved)[1].energy[0])
    volume = atoms[0].get_volume()
    stress = (np.asarray(results.stress[0]) * strain).sum() * volume
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), stress, rtol=1e-6)
    # Alone as in the batch.
    alone = evaluate(MODEL, [atoms[1]])
    np.testing.assert_allclose(alone.energy[0], results.energy[1], rtol=1e-12)
