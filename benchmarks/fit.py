"""Epsilon and sigma of a Lennard-Jones liquid from its radial distribution function, by reweighting.

`python -m benchmarks.fit`. Snapshots of a run with parameters p0 stand for others p with the weights
exp(-(U(p) - U(p0)) / k_B T): g(r) so has a derivative in p that does not go through the chaos of
trajectories. Each round is a step of Gauss and Newton, and a new run.
Source: Thaler, Zavadlav, Nat. Commun. 12, 6884 (2021).
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from scipy.optimize import lsq_linear

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVTLangevin, initialize_velocities
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import LennardJones
from alchemi_jax.units import KB


kelvin, box = 140.0, 3 * 5.9  # a liquid of 108 atoms of argon, four replicas
replicas = [bulk("Ar", "fcc", a=5.9, cubic=True).repeat(3) for _ in range(4)]
for seed, atoms in enumerate(replicas):
    atoms.rattle(0.3, seed=seed)  # a list for such neighbors is large enough for the liquid's
start = Batch.from_ase(replicas)
edges = np.linspace(2.8, 8.4, 57)
shells = 4 / 3 * np.pi * np.diff(edges**3) * 108 / box**3


def liquid(epsilon, sigma, seed, frames, like=None):
    """Snapshots in equilibrium, as one batch; with the model, and the last state, whose neighbor list is
    large enough for another liquid, so that nothing is compiled again."""
    model = LennardJones(epsilon=epsilon, sigma=sigma, cutoff=8.5, shift=True)
    sink = HostMemory()
    engine = NVTLangevin(model=model, dt=8.0, temperature=kelvin, friction=0.005)
    look = engine.with_hooks(SnapshotHook(sink, frequency=40))
    key = jax.random.key(seed)
    state = engine.init(initialize_velocities(start, 2 * kelvin, key), key=key, like=like)
    state = engine.advance(state, 1500)
    state = look.advance(state, 40 * frames)
    return model, sink.read(), state


def distribution(snapshots):
    """g(r) of each snapshot, [snapshots, bins]."""
    rows = []
    for x in np.asarray(snapshots.take().positions).reshape(-1, 108, 3):
        d = x[:, None] - x[None]
        r = np.linalg.norm(d - box * np.round(d / box), axis=-1)
        rows.append(np.histogram(r[r > 0], edges)[0] / (108 * shells))
    return np.stack(rows)


@jax.jit
def reweighted(p, p0, g, state):
    """g(r) with other parameters than those of the snapshots, and how many of these still count."""

    def of(q):
        model = LennardJones(epsilon=q[0], sigma=q[1], cutoff=8.5, shift=True)
        return model.energy(state.batch, state.neighbors)[: len(g)]

    w = jax.nn.softmax(-(of(p) - of(p0)) / (KB * kelvin))
    return w @ g, 1 / jnp.sum(w**2)


def fit(target, p, rounds, frames, last=None):
    """Gauss-Newton on g(r): each round samples anew where the last one ended. Returns the parameters of each
    round, and by how much its g(r) missed the target where that was worst."""
    slope = jax.jit(jax.jacfwd(lambda *a: reweighted(*a)[0]))
    state, path = None, []
    for k in range(rounds):
        model, snapshots, last = liquid(*p.tolist(), seed=k + 1, frames=frames, like=last)
        engine, plain = NVTLangevin(model=model, dt=1.0, temperature=kelvin), snapshots
        # The list of the last round, so that nothing is compiled again, if it is large enough.
        state = engine.init(plain, like=state)
        if bool(state.overflow):
            state = engine.init(plain)
        g, p0 = jnp.asarray(distribution(snapshots)), jnp.asarray(p)
        j = np.asarray(slope(p0, p0, g, state)) * p[None]
        gap = target - np.asarray(reweighted(p0, p0, g, state)[0])
        # The best step that goes no further than the snapshots know the way.
        change = lsq_linear(j, gap, bounds=([-0.1, -0.02], [0.1, 0.02])).x
        off = np.abs(gap).max()
        path.append((p, off))
        print(f"epsilon {p[0]:.5f} eV, sigma {p[1]:.4f} Å: off by {off:.3f}", flush=True)
        p = p * np.exp(change)
    return p, path


if __name__ == "__main__":
    begun = time.perf_counter()
    _, snapshots, last = liquid(0.0104, 3.40, seed=0, frames=100)
    target = distribution(snapshots).mean(axis=0)
    p, _ = fit(target, np.array([0.0080, 3.20]), rounds=8, frames=50, last=last)
    print(f"epsilon {p[0]:.5f} eV, sigma {p[1]:.4f} Å after {time.perf_counter() - begun:.0f} s")
