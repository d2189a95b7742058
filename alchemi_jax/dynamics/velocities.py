"""Velocities at the start of molecular dynamics."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from alchemi_jax.dynamics.updates import normal_noise, per_system_value
from alchemi_jax.parameters import as_key, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import momentum, moves_as_whole
from alchemi_jax.systems.segments import sum_by_system, to_atoms
from alchemi_jax.transforms import RUNS_ONCE, is_traced, root
from alchemi_jax.units import ACCELERATION, KB


#: A step number that no run reaches, so that this noise differs from that of all steps.
_SALT = 2**31 - 1


def initialize_velocities(batch: Batch, temperature: Any, key: PRNGKeyArray | None = None) -> Batch:
    """The batch with velocities from the Maxwell-Boltzmann distribution.

    Each component is normal with variance k_B T/m. Then the motion of the center of mass is removed
    (`remove_com_motion`), so that the mean kinetic energy is that of 3N - 3 degrees of freedom. Fixed atoms
    stay at rest. The velocities of a system depend only on key and system_id.

    Args:
        temperature: K, a number or [systems].
        key: PRNG key, `jax.random.key(0)` by default.

    Raises:
        ValueError: if the temperature is negative.
    """
    temperature = positive("temperature", zero=True)(temperature)
    # One program: operation by operation there are seventy to compile.
    draw = _draw if is_traced((batch, temperature, key)) else _draw_compiled
    return batch.replace(velocities=draw(batch.replace(meta=None), temperature, as_key(key)))


def _draw(batch: Batch, temperature: Any, key: PRNGKeyArray) -> Float[Array, "atoms 3"]:
    """The velocities of `initialize_velocities`."""
    noise = normal_noise(batch, key, _SALT)
    velocities = noise * to_atoms_speed(batch, temperature)
    moving = batch.replace(velocities=jnp.where(batch.free_components, velocities, 0))
    return remove_com_motion(moving).velocities


# The types of equinox do not declare compiler options.
_filter_jit: Any = eqx.filter_jit
_draw_compiled = _filter_jit(_draw, compiler_options=RUNS_ONCE)


def to_atoms_speed(batch: Batch, temperature: Any) -> Float[Array, "atoms 1"]:
    """Standard deviation of a velocity component of each atom at a temperature (K), sqrt(k_B T/m), Å/fs."""
    energy = jnp.broadcast_to(per_system_value(batch, temperature), batch.energy.shape) * KB
    return root(to_atoms(batch, energy) / batch.masses * ACCELERATION)[:, None]


def remove_com_motion(batch: Batch) -> Batch:
    """The batch without the motion of the center of mass of each system.

    Not changed are axes along which an atom is fixed, where this motion is not conserved, and single atoms,
    which have no other motion.
    """
    free = (batch.atoms_per_system > 1)[:, None] & moves_as_whole(batch)
    mass = sum_by_system(batch, jnp.where(batch.atom_mask, batch.masses, 0))
    drift = jnp.where(free, momentum(batch) / jnp.where(free, mass[:, None], 1), 0)
    velocities = batch.velocities - to_atoms(batch, drift)
    return batch.replace(velocities=jnp.where(batch.atom_mask[:, None], velocities, batch.velocities))


__all__ = ["initialize_velocities", "remove_com_motion", "to_atoms_speed"]
