"""Derivatives of runs, backwards and forwards, against differences in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EPSILON, SIGMA, cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    DynamicsStage,
    NVTLangevin,
    NVTNoseHoover,
    initialize_velocities,
)
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import LennardJones
from alchemi_jax.neighbors import enlarge, update
from alchemi_jax.systems.observables import kinetic_energy


STEPS = 12


class Sum(TracedHook):
    """The sum over the steps of potential and kinetic energy, eV."""

    stage: DynamicsStage = DynamicsStage.AFTER_STEP
    frequency: int = 1

    def init(self, batch):
        return jnp.zeros_like(batch.energy)

    def __call__(self, ctx, stage):
        new = ctx.batch.energy + 2 * kinetic_energy(ctx.batch)
        return dataclasses.replace(ctx, memory=ctx.memory + new)


ENGINES = {
    "NVE": (NVE, {"dt": 8.0}),
    "NVTLangevin": (NVTLangevin, {"temperature": 150.0, "dt": 8.0, "friction": 0.02}),
    "NVTNoseHoover": (NVTNoseHoover, {"temperature": 150.0, "dt": 8.0, "thermostat_time": 50.0}),
    "FIRE": (FIRE, {"dt": 4.0}),
}


@pytest.fixture(scope="module")
def hot():
    """A cluster and a periodic crystal, padded."""
    batch = Batch.from_ase([cluster(0, 4), crystal(0, 1)], system_capacity=3)
    return initialize_velocities(batch, jnp.array([20.0, 200.0]))


#: Kicks and drifts are those of NVE, with a thermostat and noise between them.
SHORT = ("NVTLangevin",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in SHORT else pytest.mark.long) for n in sorted(ENGINES)]
)
def test_of_final_energy_and_mean_observable(name, hot):
    """By epsilon, sigma, the cell, the starting positions, and the temperature or the time step; lists
    are renewed on the way."""
    kind, rest = ENGINES[name]
    last = next(iter(rest))

    def engine(epsilon, sigma, value):
        model = LennardJones(epsilon=epsilon, sigma=sigma, cutoff=6.0, shift=True, skin=0.25)
        return kind(model=model, hooks=[Sum()], **{**rest, last: value})

    begun = engine(EPSILON, SIGMA, rest[last]).init(hot)
    direction = jnp.asarray(np.random.default_rng(3).normal(size=hot.positions.shape))

    def run(p):
        epsilon, sigma, stretch, move, value = p
        positions = hot.positions * stretch + move * direction
        moved = hot.replace(positions=positions, cell=hot.cell * stretch)
        own = engine(epsilon, sigma, value)
        return own.rollout(own.init(moved, like=begun), STEPS)

    def told(p):
        state = run(p)
        return jnp.stack([state.batch.energy.sum(), state.memory[0].sum() / STEPS]), state.neighbors

    def values(p):
        return told(p)[0]

    def compiled():
        """One program of values, of their derivative in a direction, and of the list at the end."""

        def both(p, v):
            (found, final), (slope, _) = jax.jvp(told, (p,), (v,))
            return found, slope, final

        return jax.jit(both)

    at = jnp.array([EPSILON, SIGMA, 1.0, 0.0, rest[last]])
    both = compiled()
    final = both(at, at)[2]
    if bool(final.overflow):
        larger = update(hot, enlarge(begun.neighbors, np.asarray(final.needs)))
        begun = begun.replace(neighbors=larger)
        # Another function, so that what it closes over is looked at again.
        both = compiled()
        final = both(at, at)[2]
    assert name == "FIRE" or int(final.builds) > int(begun.neighbors.builds)
    assert not bool(final.overflow)

    sizes = jnp.array([EPSILON, 1.0, 0.3, 1.0, rest[last]]) * 2e-4
    differences = []
    for h in jnp.diag(sizes):
        f = [both(at + k * h, at)[0] for k in (-2, -1, 1, 2)]
        differences.append((f[0] - 8 * f[1] + 8 * f[2] - f[3]) / 12)
    differences = np.stack(differences, axis=1) / np.asarray(sizes)[None]

    backward = jax.jit(jax.grad(lambda p, weights: weights @ values(p)))
    backward = np.stack([backward(at, w) for w in jnp.eye(2)])
    forward = np.stack([both(at, v)[1] for v in jnp.eye(5)], axis=1)
    np.testing.assert_allclose(forward, differences, rtol=1e-6, atol=1e-11)
    np.testing.assert_allclose(backward, differences, rtol=1e-6, atol=1e-11)
    assert (np.abs(backward[:, :4]) > 1e-5).all()
