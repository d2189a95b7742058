"""Lists by nvalchemi-toolkit-ops: the same pairs, the same engine, right under vmap."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal, zoo
from test_neighbors import close, listed, pairs_by_ase, pairs_of

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.neighbors import guess_sizes, pair_vectors, resized, update


pytest.importorskip("nvalchemiops.jax", reason="the extra `warp` is not installed")


@pytest.mark.parametrize("cutoff", [4.0, 9.0])
def test_equals_ase_on_every_kind_of_geometry(cutoff):
    structures = [*zoo().values(), crystal(5, 3)]
    batch = Batch.from_ase(structures)
    found = listed(batch, cutoff, builder="warp")
    assert found.sizes.builder == "warp"
    close(pairs_of(batch, found), pairs_by_ase(structures, cutoff))


def test_an_engine_goes_the_same_way(lj):
    """Rebuilds inside the compiled loop, and a capacity that must grow on the way."""
    structures = [crystal(0, 2), cluster(0)]
    for atoms in structures:
        atoms.set_velocities(np.random.default_rng(1).normal(0, 0.05, (len(atoms), 3)))
    batch = Batch.from_ase(structures)
    engine = NVE(model=lj, dt=4.0, n_steps=40)
    own = engine.init(batch)
    sizes = guess_sizes(batch, lj.cutoff, lj.skin, builder="warp")
    bare = batch
    kernels = eqx.filter_jit(resized)(bare, own.neighbors, sizes)
    tight = dataclasses.replace(sizes, neighbors=int(kernels.used))
    kernels = eqx.filter_jit(resized)(bare, own.neighbors, tight)
    a, b = engine.advance(own, 40), engine.advance(own.replace(neighbors=kernels), 40)
    assert b.neighbors.sizes.builder == "warp"
    assert int(b.neighbors.builds) > 1
    np.testing.assert_allclose(a.batch.positions, b.batch.positions, atol=1e-9)


def test_update_under_vmap_equals_a_loop():
    batch = Batch.from_ase([crystal(0, 1), cluster(0)])
    neighbors = listed(batch, 5.0, builder="warp")

    def renewed(step):
        moved = batch.replace(positions=batch.positions + step * jnp.sin(jnp.arange(3.0))[None])
        new = update(moved, neighbors)
        return new.index, new.builds, pair_vectors(moved, new)[3].sum()

    steps = jnp.array([0.0, 0.6, 1.1])
    mapped = jax.jit(jax.vmap(renewed))(steps)
    for i, step in enumerate(steps):
        for a, b in zip(jax.jit(renewed)(step), mapped, strict=True):
            np.testing.assert_array_equal(a, b[i])
