"""Checks on the host, before compiling: whether an engine fits its hooks, and a batch the engine."""

import dataclasses
import functools
import inspect
import operator
import warnings
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rescue import policy_of
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.updates import own_state
from alchemi_jax.errors import UserCodeError, description, name_of
from alchemi_jax.hooks.protocol import TracedHook, flag, runs_on
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import check_precision
from alchemi_jax.systems.constraints import DROP, refusal
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.transforms import is_traced


_E = TypeVar("_E", bound="Engine")

NO_LIMIT = int(np.iinfo(np.int32).max)
"""A number of steps that no run reaches."""


def check_model(engine: Engine) -> None:
    """Check that the model of an engine is one.

    Raises:
        UserCodeError: saying what to write.
    """
    model: Any = engine.model
    if isinstance(model, AbstractModel):
        return
    found, advice = description(model), ""
    if isinstance(model, type):
        found = f"the class {model.__name__}"
    if hasattr(model, "get_potential_energy") and not hasattr(model, "get_positions"):
        made = f"{model.__name__}(...)" if isinstance(model, type) else "calculator"
        advice = f": for a calculator of ASE write {name_of(engine)}(model=ASEModel({made}), ...)"
    elif inspect.isroutine(model) or isinstance(model, functools.partial):
        found = f"the function {getattr(model, '__name__', repr(model))}"
        advice = ": write a class Mine(AbstractModel) with cutoff and def energy(self, batch, neighbors)"
    raise UserCodeError(
        f"{name_of(engine)}.model must be an AbstractModel with its parameters, not {found}{advice}."
    )


def check_rescue(engine: Engine) -> None:
    """Check that the steps of an engine with a rescue can be made shorter.

    Raises:
        TypeError: naming the engine, if it has none of its `step_lengths`.
    """
    for part in engine.parts:
        known = any(getattr(part, name, None) is not None for name in part.step_lengths)
        if policy_of(engine, part) is not None and not known:
            raise TypeError(
                f"{name_of(part)} has no parameter that a rescue could make smaller: leave rescue out, or "
                "name the parameters that say how far a step goes in `step_lengths` of the class."
            )


def check_systems(engine: Engine, batch: Batch) -> None:
    """Check that model, hooks and algorithms can treat these systems, and apply their constraints.

    Raises:
        ValueError: naming the first system that cannot be treated.
    """
    check_constraints(name_of(engine), batch)
    _check_masses(batch)
    engine.model.check(batch)
    for group in engine.groups:
        for hook in group.hooks.traced:
            hook.check_in(engine, batch)
    for part in engine.parts:
        part.check(batch)


def _check_masses(batch: Batch) -> None:
    """Check the masses, which `batch.replace` takes as they are."""
    masses = np.asarray(batch.masses)[: batch.num_atoms]
    # NaN is no mass, either.
    wrong = np.flatnonzero(~(masses > 0) | np.isinf(masses))
    if len(wrong):
        atom = int(wrong[0])
        row = int(np.asarray(batch.batch_idx)[atom])
        local = atom - int(np.asarray(batch.first_atom)[row])
        raise ValueError(
            f"{batch.name_of(row)}: masses must be positive, that of atom {local} is {masses[atom]:g} amu."
        )


def check_constraints(who: str, batch: Batch, drop: str = DROP) -> None:
    """Check that no system has constraints that cannot be applied.

    Args:
        who: engine and method, for the message.
        drop: what the user writes to leave them out.

    Raises:
        ValueError: naming the first such system, if its name is known.
    """
    for row, meta in enumerate(batch.meta):
        if meta.constraints:
            raise ValueError(refusal(batch.name_of(row), meta.constraints, drop))
    if batch.meta.constrained:
        raise ValueError(
            f"{who} was given systems with constraints that no engine applies, FixAtoms and FixCartesian "
            f"apart; jit, vmap or jax.tree.map dropped their names. {drop} leaves these constraints out."
        )


def check_fixed_components(who: str, shears: bool, batch: Batch) -> None:
    """Check that no atom is fixed along some axes only where the cell may shear, which turns its axes.

    Raises:
        ValueError: naming the system.
    """
    host = batch.take()
    partly = (host.fixed_components & ~host.fixed[:, None]).any(axis=1)
    if shears and partly.any():
        raise ValueError(
            f"{batch.name_of(int(host.batch_idx[np.argmax(partly)]))} has atoms that are fixed along some "
            f"axes only, which {who} cannot keep where the cell shears: let it change along its axes alone, "
            "or fix the atoms."
        )


def warn_idle_hooks(engine: Engine) -> None:
    """Warn about hooks with a stage that never comes in this engine."""
    if any(group.hooks.any_traced(DynamicsStage.AFTER_STEP) for group in engine.groups):
        return
    for hook in engine.hooks:
        stages = [s for s in DynamicsStage if runs_on(hook, s)]
        if stages == [DynamicsStage.ON_CONVERGE]:
            warnings.warn(
                f"{name_of(hook)} waits for ON_CONVERGE, which never comes in this {name_of(engine)}: "
                "it has no ConvergenceHook.",
                stacklevel=5,
            )


_FOLLOWERS = {"temperature": "NVTLangevin", "pressure": "NPT"}


def check_hooks(engine: Engine) -> None:
    """Check that the hooks mean something in this engine: that the algorithm follows the temperature or
    pressure that a hook sets, and what the hooks check themselves.

    Raises:
        TypeError: naming hook and engine.
    """
    for hook in engine.hooks:
        if isinstance(hook, TracedHook):
            hook.check_engine(engine)
        if flag(hook, "swaps_temperatures"):
            _check_swaps(engine, hook)
        missing = sorted(set(flag(hook, "sets_targets")) - engine.follows_targets)
        if missing:
            raise TypeError(
                f"{name_of(hook)} sets the {missing[0]}, but {name_of(engine)} keeps none: "
                f"attach it to an engine with a {missing[0]}, such as {_FOLLOWERS[missing[0]]}."
            )


def _check_swaps(engine: Engine, hook: Any) -> None:
    """Check that all systems whose temperatures a hook swaps have the ensemble that it reckons with."""
    for part in engine.parts:
        if "temperature" not in part.follows_targets:
            raise TypeError(
                f"{name_of(hook)} swaps the temperatures of systems, but {name_of(part)}, a part of "
                f"{name_of(engine)}, keeps none: attach it to the part with a thermostat."
                if engine.n_stages > 1
                else f"{name_of(hook)} sets the temperature, but {name_of(engine)} keeps none: "
                f"attach it to an engine with a temperature, such as {_FOLLOWERS['temperature']}."
            )
    others = [h for g in engine.groups for h in g.hooks if "temperature" in flag(h, "sets_targets")]
    if len(others) > 1:
        first, second = (name_of(h) for h in others[:2])
        raise TypeError(f"{first} and {second} both set the temperature: leave one of them out.")


def check_lengths(engine: Engine) -> None:
    """Check that parameters are numbers or one value per system, of equal lengths.

    Raises:
        ValueError: naming engine and parameter.
    """
    first = None
    for f in dataclasses.fields(engine):
        value = getattr(engine, f.name)
        if not isinstance(value, jax.Array) or is_traced(value) or value.ndim == 0:
            continue
        if value.ndim > 1 or value.size == 0:
            raise ValueError(
                f"{name_of(engine)}.{f.name} must be a number or one per system, "
                f"not an array of shape {list(value.shape)}."
            )
        first = first or (f.name, value.shape[0])
        if value.shape[0] != first[1]:
            raise ValueError(
                f"{name_of(engine)}.{f.name} has {value.shape[0]} values, one per system, "
                f"but {first[0]} has {first[1]}."
            )


def check_per_system(engine: Engine, batch: Batch) -> None:
    """Check that parameters with one value per system have as many values as the batch has systems."""
    fits = (batch.num_systems, batch.system_capacity)
    for f in dataclasses.fields(engine):
        value = getattr(engine, f.name)
        if isinstance(value, jax.Array) and value.ndim == 1 and value.shape[0] not in fits:
            raise ValueError(
                f"{name_of(engine)}.{f.name} has {value.shape[0]} values, one per system, "
                f"but the batch has {fits[0]} systems."
            )


def count_steps(engine: Engine, method: str, n_steps: Any, name: str = "n_steps") -> Any:
    """A number of steps that was asked for: an int, or a traced integer as it is.

    Raises:
        ValueError: naming engine and method, for anything that is no count.
    """
    if is_traced(n_steps):
        good = isinstance(n_steps, jax.Array) and n_steps.ndim == 0
        if good and jnp.issubdtype(n_steps.dtype, jnp.integer):
            return n_steps
    elif not isinstance(n_steps, bool | np.bool_) and np.ndim(n_steps) == 0 and hasattr(n_steps, "__index__"):
        number = operator.index(n_steps)
        if number >= 0:
            return min(number, NO_LIMIT)
    raise ValueError(f"{name_of(engine)}.{method}: {name} must be a positive int, not {n_steps!r}.")


def check_arrays(engine: Engine, method: str, given: Any) -> None:
    """Check that the fields of a batch or state fit together, and that JAX still has their 64 bits.

    Raises:
        TypeError: for what is no state, unless the method is `init`.
        ValueError: naming the field, `jax_enable_x64`, or the engine that made a state that does not fit.
    """
    if method != "init":
        _check_state(engine, method, given)
    batch: Batch = getattr(given, "batch", given)
    who, rows = f"{name_of(engine)}.{method}", {"atom": batch.atom_capacity, "system": batch.system_capacity}
    for name, level in level_fields(batch):
        for leaf in jax.tree.leaves(getattr(batch, name)):
            real = jnp.issubdtype(leaf.dtype, jnp.floating) and not name.endswith("_extras")
            if leaf.shape[:1] != (rows[level],) or (real and leaf.dtype != batch.dtype):
                raise ValueError(
                    f"{who} was given a batch with {name} as {description(leaf)}; it must begin with "
                    f"{rows[level]} rows, one per {level} and padding, in the dtype of the positions, "
                    f"{batch.dtype}."
                )
    check_precision(who, batch.dtype)
    if batch.meta.constrained:
        check_constraints(who, batch)


def _check_state(engine: Engine, method: str, state: Any) -> None:
    """Check that something is a state, of an engine of this kind where that is known."""
    who = f"{name_of(engine)}.{method}"
    if not isinstance(state, DynamicsState):
        raise TypeError(
            f"{who} takes the state that {name_of(engine)}.init(batch) made, not {description(state)}."
        )
    others = [name for name, _ in state.origin.parts]
    if not others or others == [name_of(part) for part in engine.parts]:
        return
    own = jax.eval_shape(lambda batch: own_state(engine, batch), state.batch)
    if jax.tree.structure(own) != jax.tree.structure(state.integrator):
        raise ValueError(
            f"{who} was given a state of {' + '.join(others)}, whose algorithm remembers other things: begin "
            f"with {name_of(engine)}.init(state.batch)."
        )


def with_budget(engine: _E, n_steps: int | None) -> _E:
    """The engine with `n_steps`, if given, in place of its own.

    Raises:
        ValueError: if neither bounds the number of steps.
    """
    if n_steps is not None:
        engine = dataclasses.replace(engine, n_steps=n_steps)
    if engine.max_steps is None:
        raise ValueError(
            f"{name_of(engine)} has no n_steps: give it to the engine or to run(batch, n_steps=...)."
        )
    return engine


__all__ = [
    "NO_LIMIT",
    "check_arrays",
    "check_constraints",
    "check_fixed_components",
    "check_hooks",
    "check_lengths",
    "check_model",
    "check_per_system",
    "check_rescue",
    "check_systems",
    "count_steps",
    "warn_idle_hooks",
    "with_budget",
]
