"""The moves that integrators are made of."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from alchemi_jax.errors import (
    UserCodeError,
    check_same_structure,
    description,
    location,
    name_of,
    user_errors,
)
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import check_levels
from alchemi_jax.systems.segments import number_in_system, to_atoms
from alchemi_jax.units import ACCELERATION


def per_system_value(batch: Batch, value: Any) -> Array:
    """A parameter, a number or one per system, in the dtype of the run; shorter rows are filled up."""
    return filled_up(jnp.asarray(value).astype(batch.dtype), batch.system_capacity)


def filled_up(value: Array, systems: int) -> Array:
    """A number as it is, or one value per system with its last one for the padding."""
    missing = systems - value.shape[0] if value.ndim else 0
    return jnp.pad(value, (0, missing), mode="edge") if missing > 0 else value


def by_system(batch: Batch, value: Any) -> Array:
    """A parameter of each system, [systems], in the dtype of the run."""
    return jnp.broadcast_to(per_system_value(batch, value), batch.energy.shape)


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


def target(batch: Batch, asked: Any, own: Any) -> Array:
    """What a thermostat or barostat keeps to, [systems]: what a hook asked for, else the engine's own."""
    return jnp.where(jnp.isnan(asked), per_system_value(batch, own), asked)


# -- noise -----------------------------------------------------------------------------------------


#: In place of an atom's number.
_OF_SYSTEM = 2**32 - 1


def stage_key(key: Array, code: int) -> Array:
    """The key of a stage of a pipeline: in the first one that of the run."""
    return key if code == 0 else jax.random.fold_in(key, code)


def normal_noise(batch: Batch, key: Array, salt: Any = None) -> Array:
    """Standard normal numbers, [atoms, 3], for this step of each system.

    They depend on key, system_id, the steps since the system entered its stage (or `salt`), and
    the atom's number in its system: not on row, batch mates or padding.
    """
    systems = _system_keys(batch, key, salt)
    local = number_in_system(batch)
    atoms = jax.vmap(jax.random.fold_in)(to_atoms(batch, systems), local.astype(jnp.uint32))
    return jax.vmap(lambda k: jax.random.normal(k, (3,), batch.dtype))(atoms)


def system_keys(batch: Batch, key: Array) -> Array:
    """A key of each system for this step, [systems], under the law of `normal_noise`."""
    return jax.vmap(lambda k: jax.random.fold_in(k, _OF_SYSTEM))(_system_keys(batch, key, None))


def _system_keys(batch: Batch, key: Array, salt: Any) -> Array:
    steps = batch.stage_steps if salt is None else jnp.full_like(batch.stage_steps, salt)
    return jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))(
        batch.system_id.astype(jnp.uint32), steps.astype(jnp.uint32)
    )


# -- calling an algorithm --------------------------------------------------------------------------


def apply_update(engine: Any, update: str, batch: Batch, state: Any, key: Array) -> tuple[Batch, Any]:
    """`engine.pre_update` or `post_update`, with the key where the algorithm asks for it.

    Raises:
        UserCodeError: naming the algorithm, if what comes back is not a batch and a state as they were.
    """
    method, who, function = getattr(engine, update), name_of(engine), getattr(type(engine), update)
    with user_errors(f"{who}.{update}", "algorithm"):
        out = method(batch, state, key) if _takes_key(type(engine), update) else method(batch, state)
    if not (isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], Batch)):
        raise UserCodeError(
            f"{who}.{update} returned {description(out)}; it must return the batch and the algorithm's "
            "state, "
            f"`return batch, state`{location(function)}."
        )
    who = f"{who}.{update}"
    return check_same_structure(who, "batch", out[0], batch, function), check_same_structure(
        who, "state", out[1], state, function
    )


def own_state(engine: Any, batch: Batch) -> Any:
    """`engine.init_state`, whose fields must say whose rows they are.

    Raises:
        UserCodeError: naming the algorithm and the field.
    """
    function = type(engine).init_state
    with user_errors(f"{name_of(engine)}.init_state", "algorithm"):
        state = engine.init_state(batch)
    _check_own_state(f"{name_of(engine)}.init_state", state, batch, location(function))
    return state


def _check_own_state(who: str, state: Any, batch: Batch, at: str) -> None:
    if isinstance(state, tuple):
        for part in state:
            _check_own_state(who, part, batch, at)
        return
    if state is not None and not isinstance(state, eqx.Module):
        raise UserCodeError(
            f"{who} returned {description(state)}; it must return None, or an equinox.Module whose fields "
            "are "
            f"declared by levels.per_atom() and per_system(){at}."
        )
    check_levels(who, state, {"atom": batch.atom_capacity, "system": batch.system_capacity}, at)


@functools.cache
def _takes_key(algorithm: type, update: str) -> bool:
    return "key" in inspect.signature(getattr(algorithm, update)).parameters
