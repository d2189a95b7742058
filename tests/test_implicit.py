"""`implicit_relax` against central differences of relaxations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.constraints import FixAtoms
from conftest import EPSILON, SIGMA, cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, FIREVariableCell, implicit_relax
from alchemi_jax.models import HarmonicModel, LennardJones


MODEL = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=12.0)


def model(sigma):
    return dataclasses.replace(MODEL, sigma=sigma)


@pytest.fixture(scope="module")
def clusters():
    """A free one and one with two fixed atoms, padded; relaxed."""
    held = cluster(2, 5)
    held.set_constraint(FixAtoms([0, 1]))
    batch = Batch.from_ase([cluster(0, 4), held], system_capacity=3)
    return implicit_relax(MODEL, batch, fmax=1e-10)


def test_positions_of_clusters(clusters):
    """A sum over all distances, by sigma and epsilon, in both directions; energies as the envelope says."""
    start = FIRE(model=MODEL).init(clusters)
    start = start.replace(batch=start.batch)
    assert bool(clusters.converged[:2].all())

    def spread(parameters):
        own = dataclasses.replace(MODEL, epsilon=parameters[0], sigma=parameters[1])
        out = implicit_relax(own, start, fmax=1e-10, tolerance=1e-12)
        a, b = out.positions[:4], out.positions[4:9]
        squares = sum(jnp.sum((x[:, None] - x[None]) ** 2) for x in (a, b))
        return jnp.stack([squares, out.energy.sum()])

    # One program of values and of their derivative in a direction.
    forwards = jax.jit(lambda p, v: jax.jvp(spread, (p,), (v,)))
    at = jnp.array([EPSILON, SIGMA])
    h = jnp.array([0.0, 2e-3])
    f = [forwards(at + k * h, h)[0] for k in (-2, -1, 1, 2)]
    difference = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * 2e-3)
    forward = jnp.stack([forwards(at, v)[1] for v in jnp.eye(2)], axis=1)
    backward = jax.jit(jax.jacrev(spread))(at)
    np.testing.assert_allclose(backward[:, 1], difference, rtol=1e-6)
    np.testing.assert_allclose(forward, backward, rtol=1e-7, atol=1e-4)
    # All energies of a Lennard-Jones system are in proportion to epsilon.
    np.testing.assert_allclose(backward[:, 0], [0, forwards(at, h)[0][1] / EPSILON], rtol=1e-9, atol=1e-4)


def test_a_cell_under_pressure():
    """Of a crystal: volume by sigma and by the outer pressure; by jit and vmap, too."""
    stop = ConvergenceHook([{"key": "fmax", "threshold": 1e-10}, {"key": "smax", "threshold": 1e-12}])
    engine = FIREVariableCell(model=MODEL, hooks=[stop], n_steps=3000, scalar_pressure=0.2)
    short = dataclasses.replace(engine, model=dataclasses.replace(MODEL, cutoff=6.0, shift=True))
    batch = Batch.from_ase(crystal(1, 1, 0.05))
    relaxed = implicit_relax(short, batch)
    start = short.init(relaxed)
    start = start.replace(batch=start.batch)

    def volume(sigma, pressure):
        own = dataclasses.replace(
            short, model=dataclasses.replace(short.model, sigma=sigma), scalar_pressure=pressure
        )
        return jnp.abs(jnp.linalg.det(implicit_relax(own, start, tolerance=1e-12).cell[0]))

    both = jax.jit(jax.value_and_grad(volume, argnums=(0, 1)))
    at = (SIGMA, 0.2)
    slopes = both(*at)[1]
    h = 1e-3
    differences = []
    for step in np.array([[h, 0], [0, 10 * h]]):
        f = [both(*(np.array(at) + k * step))[0] for k in (-2, -1, 1, 2)]
        differences.append((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step.sum()))
    np.testing.assert_allclose(slopes, differences, rtol=1e-6)
    assert slopes[1] < 0


def test_wells_that_hold_the_whole():
    """Translation costs energy here: it is not left out. Grad of a batch, without a list to make."""
    batch = Batch.from_ase(cluster(0, 3))

    def place(center):
        return implicit_relax(HarmonicModel(k=2.0, center=center), batch).positions[:3].sum(axis=0)

    np.testing.assert_allclose(jax.jacrev(place)(jnp.array([1.0, 2.0, 3.0])), 3 * np.eye(3), atol=1e-9)


def test_what_implicit_relax_refuses(clusters):
    with pytest.raises(TypeError, match=r"FIRE needs a ConvergenceHook with a tight"):
        implicit_relax(FIRE(model=MODEL, n_steps=3), clusters)
    with pytest.raises(ValueError, match=r"Inside jit, vmap and grad give it the state"):
        jax.grad(lambda s: implicit_relax(model(s), clusters).energy.sum())(SIGMA)
    far = Batch.from_ase(cluster(0, 4))
    state = FIRE(model=MODEL).init(far)
    slope = jax.grad(lambda s: implicit_relax(model(s), state, n_steps=3).positions[0, 0])(SIGMA)
    assert np.isnan(slope)
