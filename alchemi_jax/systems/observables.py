"""Observables of the systems of a Batch or a HostBatch, traced or not."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.segments import max_by_system, sum_by_system
from alchemi_jax.transforms import root
from alchemi_jax.units import ACCELERATION, DENSITY, GPA, KB


def force_norms(batch: AbstractBatch) -> Float[Array, " atoms"]:
    """Norm of the force on each atom, eV/Å, [atoms]."""
    x, y, z = (batch.forces[:, k] for k in range(3))
    return root(x * x + y * y + z * z)


def fmax(batch: AbstractBatch) -> Float[Array, " systems"]:
    """Largest norm of a force in each system, eV/Å."""
    return max_by_system(batch, force_norms(batch))


def kinetic_energy(batch: AbstractBatch) -> Float[Array, " systems"]:
    """Kinetic energy, the sum of m v²/2, eV."""
    x, y, z = (batch.velocities[:, k] for k in range(3))
    return sum_by_system(batch, batch.masses * (x * x + y * y + z * z)) / (2 * ACCELERATION)


def kinetic_tensor(batch: AbstractBatch) -> Float[Array, "systems 3 3"]:
    """The sum of m v v over the atoms, eV, [systems, 3, 3]; its trace is twice the kinetic energy."""
    x, y, z = (batch.velocities[:, k] for k in range(3))
    parts = jnp.stack([x * x, y * y, z * z, y * z, x * z, x * y], axis=-1)
    s = sum_by_system(batch, batch.masses[:, None] * parts) / ACCELERATION
    xx, yy, zz, yz, xz, xy = (s[:, k] for k in range(6))
    return jnp.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)


def momentum(batch: AbstractBatch) -> Float[Array, "systems 3"]:
    """Total momentum, amu Å/fs, [systems, 3]."""
    return sum_by_system(batch, batch.masses[:, None] * batch.velocities)


def degrees_of_freedom(batch: AbstractBatch, centre_of_mass: Any = None) -> Int[Array, " systems"]:
    """Number of degrees of freedom that the temperature counts, [systems].

    One for each component of an atom that is not fixed, minus one for each axis along which no atom is fixed,
    if the center of mass stays at rest, as with algorithms that conserve momentum (NVE, Nosé-Hoover).

    Args:
        centre_of_mass: whether the center of mass moves and is counted (Langevin); by default it is counted
            where the total momentum is not zero.
    """
    count = batch.atoms_per_system
    free = sum_by_system(batch, batch.free_components.astype(jnp.int32)).astype(jnp.int32)
    whole = free == count[:, None]
    if centre_of_mass is None:
        total = root(jnp.sum(jnp.where(whole, momentum(batch), 0) ** 2, axis=-1))
        speed = root(jnp.sum(batch.velocities**2, axis=-1))
        scale = sum_by_system(batch, batch.masses * speed)
        centre_of_mass = total > jnp.sqrt(jnp.finfo(batch.dtype).eps) * scale
    counted = jnp.broadcast_to(jnp.asarray(centre_of_mass), count.shape) | (count <= 1)
    lost = (whole & ~counted[:, None]).astype(free.dtype)
    return jnp.sum(free - lost, axis=-1, dtype=free.dtype)


def moves_as_whole(batch: AbstractBatch) -> Bool[Array, "systems 3"]:
    """True for axes along which no atom is fixed, so that the center of mass moves freely, [systems, 3]."""
    free = sum_by_system(batch, batch.free_components.astype(jnp.int32)).astype(jnp.int32)
    return free == batch.atoms_per_system[:, None]


def temperature(batch: AbstractBatch, centre_of_mass: Any = None) -> Float[Array, " systems"]:
    """Kinetic temperature, K: 2 E_kin / (N k_B), with N from `degrees_of_freedom`.

    Args:
        centre_of_mass: as for `degrees_of_freedom`.
    """
    count = jnp.maximum(degrees_of_freedom(batch, centre_of_mass), 1).astype(batch.dtype)
    return 2 * kinetic_energy(batch) / (count * KB)


def volume(batch: AbstractBatch) -> Float[Array, " systems"]:
    """Volume of the cell, Å³; NaN unless periodic in all directions."""
    a, b, c = (batch.cell[:, k] for k in range(3))
    size = jnp.abs(jnp.sum(a * jnp.cross(b, c), axis=-1))
    return jnp.where(jnp.all(batch.pbc, axis=-1), size, jnp.nan)


def _per_volume(batch: AbstractBatch, values: Float[Array, "systems *dims"]) -> Float[Array, "systems *dims"]:
    """Values of the systems, [systems, ...], over the volume; NaN unless periodic, and without derivative
    there."""
    periodic = jnp.all(batch.pbc, axis=-1)
    further = (1,) * (values.ndim - 1)
    size, periodic = (x.reshape(x.shape + further) for x in (jnp.where(periodic, volume(batch), 1), periodic))
    return jnp.where(periodic, values / size, jnp.nan)


def pressure(batch: AbstractBatch) -> Float[Array, " systems"]:
    """Pressure with its kinetic part, GPa; NaN where there is no stress (not evaluated, or not periodic).

    P V = (2 E_kin - V tr stress) / 3; the kinetic part includes the motion of the center of mass.
    """
    trace = batch.stress[:, 0, 0] + batch.stress[:, 1, 1] + batch.stress[:, 2, 2]
    return (_per_volume(batch, 2 * kinetic_energy(batch)) - trace) / 3 / GPA


def kinetic_stress(batch: AbstractBatch) -> Float[Array, "systems 3 3"]:
    """The kinetic part of the stress, -(1/V) times the sum of m v v, eV/Å³, [systems, 3, 3]; NaN unless
    periodic in all directions."""
    return -_per_volume(batch, kinetic_tensor(batch))


def stress(batch: AbstractBatch) -> Float[Array, "systems 3 3"]:
    """Stress with its kinetic part, eV/Å³, [systems, 3, 3], positive under tension; minus its mean diagonal
    is `pressure`."""
    return batch.stress + kinetic_stress(batch)


def enthalpy(batch: AbstractBatch, pressure: Any) -> Float[Array, " systems"]:
    """Potential energy plus kinetic energy plus P V, eV.

    Args:
        pressure: external pressure P, GPa, a number or [systems].
    """
    external = jnp.broadcast_to(jnp.asarray(pressure).astype(batch.dtype), batch.energy.shape) * GPA
    periodic = jnp.all(batch.pbc, axis=-1)
    work = jnp.where(periodic, external * jnp.where(periodic, volume(batch), 1), jnp.nan)
    return batch.energy + kinetic_energy(batch) + work


def density(batch: AbstractBatch) -> Float[Array, " systems"]:
    """Mass over volume, g/cm³; NaN unless periodic in all directions."""
    mass = sum_by_system(batch, jnp.where(batch.atom_mask, batch.masses, 0))
    return _per_volume(batch, mass) * DENSITY


__all__ = [
    "degrees_of_freedom",
    "density",
    "enthalpy",
    "fmax",
    "force_norms",
    "kinetic_energy",
    "kinetic_stress",
    "kinetic_tensor",
    "momentum",
    "moves_as_whole",
    "pressure",
    "stress",
    "temperature",
    "volume",
]
