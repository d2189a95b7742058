"""After the last step: the stress, texts of reasons, and warnings about systems that failed."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.reasons import is_numerical, is_of_model, reason_text
from alchemi_jax.dynamics.rescue import RESCUES, policy_of
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import reads_stress
from alchemi_jax.errors import name_of
from alchemi_jax.models.base import results_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import RUNS_ONCE


#: Compiled without optimization, since these run once. The types of equinox do not declare the options.
_filter_jit: Any = eqx.filter_jit
_jit_once = functools.partial(_filter_jit, compiler_options=RUNS_ONCE)


def finalize(engine: Engine, state: DynamicsState) -> Batch:
    """The batch of a state, with texts of reasons, and with the stress of periodic systems.

    A run does not compute the stress if nothing reads it.
    """
    batch = with_reason_texts(engine, state.batch)
    if reads_stress(engine) or not np.asarray(batch.pbc).all(axis=-1).any():
        return batch
    return batch.replace(stress=stress_of(engine, state))


def with_reason_texts(engine: Engine, batch: Batch) -> Batch:
    """The batch with texts that say why systems failed or were stopped. On the host."""
    reasons = np.asarray(batch.reason)
    rows = np.flatnonzero(reasons).tolist()
    return batch.with_reasons({row: reason_text(engine, int(reasons[row])) for row in rows})


def stress_of(engine: Engine, state: DynamicsState) -> Float[Array, "systems 3 3"]:
    """Stress of a state, eV/Å³; NaN where a system is not periodic in all directions."""
    batch, neighbors = state.batch, state.neighbors
    # The list is usually up to date, and the check compiles little.
    if neighbors is not None and _is_outdated(batch, neighbors):
        neighbors = nl.update_with_room(batch, neighbors)
    stress = _stress_of_small if batch.atom_capacity < _SMALL else _stress_of_large
    return stress(engine.model, batch, neighbors)


def _is_outdated(batch: Batch, neighbors: nl.NeighborList) -> bool:
    return bool(_may_be_outdated(batch, neighbors)) and bool(_is_due(batch, neighbors))


@_jit_once
def _may_be_outdated(batch: Batch, neighbors: nl.NeighborList) -> Bool[Array, ""]:
    return nl.may_be_due(batch, neighbors) | nl.offsets_outdated(batch, neighbors) | ~neighbors.built


@_jit_once
def _is_due(batch: Batch, neighbors: nl.NeighborList) -> Bool[Array, ""]:
    due = jnp.any(nl.due(batch, neighbors))
    return due | nl.offsets_outdated(batch, neighbors) | ~neighbors.built


def _stress(model: Any, batch: Batch, neighbors: nl.NeighborList | None) -> Float[Array, "systems 3 3"]:
    stress: Any = results_of(model, batch, neighbors, stress=True).stress
    return stress.astype(batch.dtype)


_SMALL = 2000
"""Atoms. Of fewer the stress is evaluated in less time than better code takes to compile."""
_stress_of_small, _stress_of_large = _jit_once(_stress), _filter_jit(_stress)


def warn_rescued(engine: Engine, state: DynamicsState, before: DynamicsState) -> None:
    """Warn about systems that were rescued since the state `before`, once for each."""
    held, batch = state.rescue, state.batch
    assert held is not None
    times = np.asarray(batch.system_extras[RESCUES])
    new = np.flatnonzero(times > np.asarray(before.batch.system_extras[RESCUES]))
    numbers = jax.device_get((held.reason, held.failed_in, held.back_to, held.factor, batch.status))
    for system in new[:10].tolist():
        code, failed_in, back_to, factor, status = (x[system].item() for x in numbers)
        rescuing = [part for part in engine.parts if policy_of(engine, part) is not None]
        part = engine.parts[status] if status < engine.exit_status else rescuing[0]
        why = reason_text(engine, code) + (f" in {name_of(engine.model)}" if is_of_model(code) else "")
        warnings.warn(
            f"{batch.name_of(system)} was rescued in step {failed_in}: {why}. It went back to its step "
            f"{back_to} and goes on with {_step_length(part, system, factor)} (rescue "
            f"{times[system]}).",
            RuntimeWarning,
            stacklevel=4,
        )
    if len(new) > 10:
        warnings.warn(f"{len(new) - 10} more systems were rescued.", RuntimeWarning, stacklevel=4)


def _step_length(part: Engine, system: int, factor: float) -> str:
    """The time step of a rescued system, or what its largest step is multiplied by."""
    if not part.has_velocities or not hasattr(part, "dt"):
        return f"steps of {factor:g} of their length"
    dt = np.asarray(part.dt)  # pyright: ignore[reportAttributeAccessIssue]
    return f"a time step of {float(dt if dt.ndim == 0 else dt[min(system, len(dt) - 1)]) * factor:.4g} fs"


def warn_failed(engine: Engine, batch: Batch, known: Any = None) -> None:
    """Warn about systems that failed, once for each, with its step and the reason.

    Args:
        known: [systems], those that the user was warned about before.
    """
    failed = np.asarray(batch.failed)
    new = np.flatnonzero(failed if known is None else failed & ~np.asarray(known))
    if not len(new):
        return
    steps, reasons = np.asarray(batch.steps_taken), np.asarray(batch.reason)
    evaluated = np.isfinite(np.asarray(batch.energy))
    rescues = np.asarray(batch.system_extras[RESCUES]) if RESCUES in batch.system_extras else None
    for system in new[:10].tolist():
        when = f"in step {steps[system]}" if evaluated[system] else "before the first step"
        code = int(reasons[system])
        why = reason_text(engine, code) + (f" in {name_of(engine.model)}" if is_of_model(code) else "")
        hint = " (atoms too close, or the time step too long?)." if is_numerical(code) else "."
        where = "It stays in its last finite state." if evaluated[system] else "It stays as it was given."
        if rescues is not None and rescues[system]:
            where = f"It was rescued {rescues[system]} times before. {where}"
        warnings.warn(
            f"{batch.name_of(system)} failed {when}: {why}{hint} {where}",
            RuntimeWarning,
            stacklevel=4,
        )
    if len(new) > 10:
        warnings.warn(f"{len(new) - 10} more systems failed.", RuntimeWarning, stacklevel=4)


__all__ = ["finalize", "stress_of", "warn_failed", "with_reason_texts"]
