"""What tests of integrators share: `follow`, the one compiled loop, which takes steps and writes down
observables, and engines for argon."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax import observables
from alchemi_jax.dynamics import NPH, NPT, NVE, NVTNoseHoover
from alchemi_jax.models import AbstractModel, Morse
from alchemi_jax.neighbors import ListSizes, resized, update


#: Standard errors: normal numbers are beyond 5 with probability 6e-7, Student's with 15 degrees of
#: freedom beyond 6 with 2.4e-5.
NORMAL, STUDENT = 5.0, 6.0
#: About argon, and twice continuously differentiable at the cutoff, so that orders of convergence show.
SMOOTH = Morse(depth=0.0104, width=1.6, r0=3.8, cutoff=5.6, onset=4.4)
RECORDS = 160


class CellSpring(AbstractModel):
    """E = (k/2) |h h^T / side² - 1|² of the cell h alone: what the atoms of a gas in it do is known."""

    k: float
    side: float
    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        metric = jnp.einsum("sab,scb->sac", batch.cell, batch.cell) / self.side**2
        return self.k / 2 * jnp.sum((metric - jnp.eye(3)[None]) ** 2, axis=(1, 2)) * batch.system_mask


def follow(engine, state, every):
    """`_follow`, of which nothing is lost."""
    # An array, so that another number of steps is not another program.
    rows, state = _follow(engine, state, jnp.asarray(every))
    assert not np.any(state.overflow)
    assert not np.any(state.batch.failed)
    return rows, state


_updated = eqx.filter_jit(update)


@eqx.filter_jit
def _follow(engine, state, every):
    """RECORDS rows of observables, one after `every` steps, and the state at the end."""

    def record(state, _):
        state = jax.lax.fori_loop(0, every, lambda _, s: engine.step(s), state)
        b = state.batch
        row = {
            "conserved": engine.conserved_energy(state),
            "double": 2 * observables.kinetic_energy(b),
            "momentum": observables.momentum(b),
            "volume": observables.volume(b),
            "pressure": observables.pressure(b),
            "position": b.positions,
            "velocity": b.velocities,
        }
        if isinstance(state.integrator, tuple):
            row["rate"] = state.integrator[0].rate
        return state, row

    state, rows = jax.lax.scan(record, state, None, length=RECORDS)
    return rows, state


def begun(engine, batch, key=None):
    """A state with lists so roomy that they do not overflow in `follow`, which cannot grow them.

    Engines without hooks share the program that evaluates the start.
    """
    if engine.hooks:
        state = engine.init(batch, key=key)
    else:
        first = NPH if np.asarray(batch.pbc).all(axis=1)[: batch.num_systems].all() else NVE
        state = first(model=engine.model, dt=1.0).init(batch, key=key)
        state = state.replace(integrator=engine.init_state(state.batch))
    if (held := state.neighbors) is not None:
        roomy = ListSizes(*(2 * size for size in dataclasses.astuple(held.sizes)))
        state = state.replace(neighbors=_updated(state.batch.replace(meta=None), resized(held, roomy)))
    return state.replace(batch=state.batch)


def agrees(estimates, expected, errors=STUDENT):
    """Independent estimates, one per system, have the expected mean: Student's t."""
    estimates = np.asarray(estimates)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    return np.abs(estimates.mean() - expected) <= errors * error


def nose_hoover(**kwargs):
    return NVTNoseHoover(
        **{"model": SMOOTH, "dt": 4.0, "temperature": 30.0, "thermostat_time": 150.0, **kwargs}
    )


def npt(cell="isotropic", **kwargs):
    own = {"thermostat_time": 150.0, "barostat_time": 400.0, "pressure": 0.05}
    return NPT(**{"model": SMOOTH, "dt": 4.0, "temperature": 30.0, "cell": cell, **own, **kwargs})


def nph(cell, **kwargs):
    own = {"model": SMOOTH, "pressure": 0.05, "temperature": 30.0, "barostat_time": 400.0}
    return NPH(cell=cell, **own, **kwargs)
