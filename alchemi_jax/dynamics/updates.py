"""Building blocks of integrators: kick, drift, targets and noise; and calls of an algorithm."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, Shaped, UInt32

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


def per_system_value(batch: Batch, value: Any) -> Float[Array, "*n"]:
    """A parameter as it is, a number or [systems], in the dtype of the run; padding gets the last value."""
    return filled_up(jnp.asarray(value).astype(batch.dtype), batch.system_capacity)


def filled_up(value: Shaped[Array, "*n"], systems: int) -> Shaped[Array, "*m"]:
    """A number as it is, or one value per system; padding gets the last value."""
    missing = systems - value.shape[0] if value.ndim else 0
    return jnp.pad(value, (0, missing), mode="edge") if missing > 0 else value


def by_system(batch: Batch, value: Any) -> Float[Array, " systems"]:
    """A parameter at the systems, [systems], in the dtype of the run."""
    return jnp.broadcast_to(per_system_value(batch, value), batch.energy.shape)


def at_atoms(batch: Batch, value: Any) -> Float[Array, "atoms 1"] | Float[Array, ""]:
    """A parameter at the atoms, [atoms, 1], or the number itself if it is the same for all."""
    value = per_system_value(batch, value)
    return to_atoms(batch, value)[:, None] if value.ndim else value


def kick(batch: Batch, dt: Any) -> Batch:
    """Velocities changed by the forces during dt (fs): v + dt f/m. Fixed atoms have no forces."""
    rate = at_atoms(batch, dt) * (ACCELERATION / batch.masses[:, None])
    return batch.replace(velocities=batch.velocities + rate * batch.forces)


def drift(batch: Batch, dt: Any) -> Batch:
    """Positions moved by the velocities during dt (fs): r + dt v."""
    return batch.replace(positions=batch.positions + at_atoms(batch, dt) * batch.velocities)


def target(batch: Batch, asked: Any, own: Any) -> Float[Array, " systems"]:
    """The temperature (K) or pressure (GPa) to keep, [systems]: the one that a hook has set, otherwise that
    of the engine."""
    return jnp.where(jnp.isnan(asked), per_system_value(batch, own), asked)


# -- noise -----------------------------------------------------------------------------------------


#: Used in place of the number of an atom for noise of a system.
_OF_SYSTEM = 2**32 - 1


def stage_key(key: PRNGKeyArray, code: int) -> PRNGKeyArray:
    """The key of a part of a pipeline; in the first part it is the key of the run."""
    return key if code == 0 else jax.random.fold_in(key, code)


def normal_noise(batch: Batch, key: PRNGKeyArray, salt: Any = None) -> Float[Array, "atoms 3"]:
    """Standard normal random numbers for this step of each system, [atoms, 3].

    They depend on `key`, `system_id`, the steps since the system entered its part of the pipeline (or on
    `salt`), and the number of the atom in its system. They do not depend on rows, padding or other systems.
    """
    systems = _system_keys(batch, key, salt)
    local = number_in_system(batch)
    atoms = jax.vmap(jax.random.fold_in)(to_atoms(batch, systems), local.astype(jnp.uint32))
    return jax.vmap(lambda k: jax.random.normal(k, (3,), batch.dtype))(atoms)


def system_keys(batch: Batch, key: PRNGKeyArray) -> Key[Array, " systems"] | UInt32[Array, "systems 2"]:
    """A key of each system for this step; it depends on the same as `normal_noise`."""
    return jax.vmap(lambda k: jax.random.fold_in(k, _OF_SYSTEM))(_system_keys(batch, key, None))


def _system_keys(
    batch: Batch, key: PRNGKeyArray, salt: Any
) -> Key[Array, " systems"] | UInt32[Array, "systems 2"]:
    steps = batch.stage_steps if salt is None else jnp.full_like(batch.stage_steps, salt)
    return jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))(
        batch.system_id.astype(jnp.uint32), steps.astype(jnp.uint32)
    )


# -- calling an algorithm --------------------------------------------------------------------------


def apply_update(engine: Any, update: str, batch: Batch, state: Any, key: PRNGKeyArray) -> tuple[Batch, Any]:
    """Call `engine.pre_update` or `post_update`, with the key if the method has this parameter.

    Raises:
        UserCodeError: naming the algorithm, if it does not return a batch and a state of the same structure.
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
    """Call `engine.init_state` and check that the fields of the state declare their levels.

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


__all__ = [
    "apply_update",
    "at_atoms",
    "by_system",
    "drift",
    "filled_up",
    "kick",
    "normal_noise",
    "own_state",
    "per_system_value",
    "stage_key",
    "system_keys",
    "target",
]
