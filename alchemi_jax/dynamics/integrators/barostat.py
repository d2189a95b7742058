"""The barostat of Martyna, Tobias and Klein, which `NPH` and `NPT` share."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.dynamics.matrices import exp_and_mean
from alchemi_jax.dynamics.updates import by_system, target
from alchemi_jax.products import einsum, matmul
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.observables import degrees_of_freedom, kinetic_tensor, volume
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.units import ACCELERATION, GPA, KB


#: How a cell may change: the degree of freedom to which each component of the strain belongs. Components that
#: a shape does not have are zero, so it does not matter where they are counted.
SHAPES = {
    "isotropic": np.zeros((3, 3), int),
    "anisotropic": np.diag([0, 1, 2]),
    "flexible": np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]]),
}


class Barostat(eqx.Module):
    """Rate of strain g of the cell (1/fs, symmetric) and number of degrees of freedom of the atoms."""

    rate: Float[Array, "systems 3 3"] = per_system()
    count: Float[Array, " systems"] = per_system()


def new_barostat(batch: Batch) -> Barostat:
    """A barostat at rest."""
    return Barostat(jnp.zeros_like(batch.cell), degrees_of_freedom(batch).astype(batch.dtype))


def check_periodic(name: str, batch: Batch) -> None:
    """Checks that all systems have a cell that can change.

    Raises:
        ValueError: naming the system that is not periodic in all directions.
    """
    host = batch.take()
    for system in range(host.num_systems):
        if not host.pbc[system].all():
            raise ValueError(
                f"{batch.name_of(system)} is not periodic in all directions: {name} has no cell to change."
            )


def barostat_mass(batch: Batch, barostat: Barostat, temperature: Any, time: Any) -> Float[Array, " systems"]:
    """W = (N + 3) k_B T tau²/3, eV fs², [systems]."""
    kt = KB * by_system(batch, temperature)
    return (barostat.count + 3) * kt * by_system(batch, time) ** 2 / 3


def barostat_energy(
    batch: Batch, barostat: Barostat, mass: Float[Array, " systems"], pressure: Any
) -> Float[Array, " systems"]:
    """Kinetic energy of the cell, W tr(g²)/2, and P V, [systems], eV."""
    outer = GPA * target(batch, batch.target_pressure, pressure)
    return twice_kinetic(barostat, mass) / 2 + outer * volume(batch)


def twice_kinetic(barostat: Barostat, mass: Float[Array, " systems"]) -> Float[Array, " systems"]:
    """W tr(g²), [systems], eV."""
    return mass * jnp.sum(barostat.rate**2, axis=(1, 2))


def count_parts(shape: str) -> int:
    """The number of degrees of freedom of a cell."""
    return int(SHAPES[shape].max()) + 1


def twice_kinetic_of_parts(
    barostat: Barostat, mass: Float[Array, " systems"], shape: str
) -> Float[Array, "systems parts"]:
    """W g² of each degree of freedom of the cell, [systems, parts], eV."""
    squares = (mass[:, None, None] * barostat.rate**2).reshape(-1, 9)
    members = np.eye(count_parts(shape))[SHAPES[shape].reshape(-1)]
    return matmul(squares, jnp.asarray(members, squares.dtype))


def scale_rate(barostat: Barostat, factors: Float[Array, "systems parts"], shape: str) -> Barostat:
    """The barostat with the rate of each degree of freedom of the cell multiplied by a factor."""
    return Barostat(barostat.rate * factors[:, SHAPES[shape]], barostat.count)


def push_cell(
    batch: Batch,
    barostat: Barostat,
    mass: Float[Array, " systems"],
    pressure: Any,
    shape: str,
    dt: Float[Array, " systems"],
) -> Barostat:
    """The barostat after the difference of internal and external pressure has acted for dt, fs."""
    outer = GPA * target(batch, batch.target_pressure, pressure)
    moving = kinetic_tensor(batch)
    double = jnp.trace(moving, axis1=1, axis2=2)
    even = double / jnp.maximum(barostat.count, 1) - outer * volume(batch)
    force = moving - volume(batch)[:, None, None] * batch.stress + _diagonal(even)
    change = (dt / mass)[:, None, None] * _allowed(force, shape)
    return Barostat(barostat.rate + change, barostat.count)


def kick(batch: Batch, barostat: Barostat, dt: Float[Array, " systems"]) -> Batch:
    """Velocities after dt of dv/dt = f/m - (g + tr(g)/N) v, solved exactly."""
    trace = jnp.trace(barostat.rate, axis1=1, axis2=2)
    drag = barostat.rate + _diagonal(trace / jnp.maximum(barostat.count, 1))
    decay, mean = exp_and_mean(-dt[:, None, None] * drag)
    pull = to_atoms(batch, dt * ACCELERATION)[:, None] * batch.forces / batch.masses[:, None]
    return batch.replace(velocities=_times(batch, batch.velocities, decay) + _times(batch, pull, mean))


def drift(batch: Batch, barostat: Barostat, dt: Float[Array, " systems"]) -> Batch:
    """Positions and cell after dt of dr/dt = v + g r and dh/dt = g h, solved exactly."""
    growth, mean = exp_and_mean(dt[:, None, None] * barostat.rate)
    moved = to_atoms(batch, dt)[:, None] * batch.velocities
    return batch.replace(
        positions=_times(batch, batch.positions, growth) + _times(batch, moved, mean),
        cell=einsum("sab,sbc->sac", batch.cell, growth),
    )


def _times(
    batch: Batch, rows: Float[Array, "atoms 3"], matrix: Float[Array, "systems 3 3"]
) -> Float[Array, "atoms 3"]:
    return einsum("na,nab->nb", rows, to_atoms(batch, matrix))


def _diagonal(values: Float[Array, " systems"]) -> Float[Array, "systems 3 3"]:
    return values[:, None, None] * jnp.eye(3, dtype=values.dtype)[None]


def _allowed(tensor: Float[Array, "systems 3 3"], shape: str) -> Float[Array, "systems 3 3"]:
    """The part of a strain that the shape allows."""
    if shape == "isotropic":
        return _diagonal(jnp.trace(tensor, axis1=1, axis2=2) / 3)
    if shape == "anisotropic":
        return tensor * jnp.eye(3, dtype=tensor.dtype)[None]
    return (tensor + tensor.swapaxes(1, 2)) / 2


__all__ = [
    "SHAPES",
    "Barostat",
    "barostat_energy",
    "barostat_mass",
    "check_periodic",
    "count_parts",
    "drift",
    "kick",
    "new_barostat",
    "push_cell",
    "scale_rate",
    "twice_kinetic",
    "twice_kinetic_of_parts",
]
