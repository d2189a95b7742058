"""The moves that integrators are made of."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from alchemi_jax.batch import Batch
from alchemi_jax.segments import to_atoms
from alchemi_jax.units import ACCELERATION


def per_system_value(batch: Batch, value: Any) -> Array:
    """A parameter, a number or one per system, in the dtype of the run; shorter rows are filled up."""
    value = jnp.asarray(value).astype(batch.dtype)
    missing = batch.system_capacity - value.shape[0] if value.ndim else 0
    return jnp.pad(value, (0, missing), mode="edge") if missing > 0 else value


def at_atoms(batch: Batch, value: Any) -> Array:
    """A parameter at each atom, [atoms, 1], or the number itself if it is the same for all."""
    value = per_system_value(batch, value)
    return to_atoms(batch, value)[:, None] if value.ndim else value


def kick(batch: Batch, dt: Any) -> Batch:
    """Velocities changed by the forces during dt (fs): v + dt f/m. Fixed atoms have no forces."""
    rate = at_atoms(batch, dt) * (ACCELERATION / batch.masses[:, None])
    return batch.replace(velocities=batch.velocities + rate * batch.forces)


def drift(batch: Batch, dt: Any) -> Batch:
    """Positions moved by the velocities during dt (fs): r + dt v."""
    return batch.replace(positions=batch.positions + at_atoms(batch, dt) * batch.velocities)
