"""Rescue: a system that fails for a numerical reason goes back to a copy of itself, with shorter steps.

`Rescue` is the policy of an engine, `RescueState` what it keeps in the state: two copies of each system and
the factor on its steps. The phases of a step that use them are in `restore.py`.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from alchemi_jax.errors import description
from alchemi_jax.parameters import Described, Parameter, as_count, as_flag, fraction
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import Data, per_atom, per_system


#: Name of the extra of a batch that counts how often each system was rescued.
RESCUES = "rescues"


class Rescue(Described):
    """Lets a failing system try again: it returns to a copy of itself and continues with shorter steps.

        rescue = Rescue(tries=3, factor=0.5, every=50)
        md = NVE(model=model, dt=2.0, n_steps=10_000, rescue=rescue)

    A system is rescued when its energy, forces, positions, ... are no longer finite, when its atoms are too
    far away, or when its cell became too small for the neighbor list. It returns to the last but one copy,
    since the last one may have been made when the explosion had begun. Its time step (in optimizers without
    one, its largest step) is multiplied by `factor` until the end of its run. After `tries` rescues the next
    failure is final. So is a failure before the first step or at ON_CONVERGE.

    A copy is made after the first evaluation of a system, when it enters a part of a pipeline, and after each
    `every` of its own steps. It has everything of the system that a step changes: positions, velocities,
    cell, results, targets, `time`, its rows of the algorithm's state and of the memories of traced hooks.
    Shared memories, such as a histogram over all systems, keep what they counted.

    Steps are counted on: the failed step and those since the copy stay in `steps_taken` and in the budget. So
    no two rows or frames have the same step, and the noise is new. `time` is that of the copy. Rows and
    frames that were recorded since the copy stay; their `time` shows the jump. In the step of a rescue the
    system does not move: hooks see it as failed, and logs have no row of it.

    `batch["rescues"]` counts the rescues of each system, and a warning reports each one. The two copies need
    twice the memory of the fields above, and a pass over them in each `every` steps.

    Args:
        tries: largest number of rescues of a system.
        factor: the time step is multiplied by it at each rescue; between 0 and 1.
        every: number of steps from one copy to the next. Take more than an explosion lasts from its first
            wrong step on.
        hooks: whether systems that a hook failed by `ctx.fail` are also rescued.
    """

    tries: Int[Array, ""] = eqx.field(converter=as_count("tries"), default=3)
    factor: Parameter = eqx.field(converter=fraction("factor"), default=0.5)
    every: Int[Array, ""] = eqx.field(converter=as_count("every"), default=50)
    hooks: bool = eqx.field(static=True, converter=as_flag("hooks"), default=False)


def as_rescue(value: Any) -> Rescue | None:
    """A converter of the field `rescue`. It raises TypeError for what is neither a Rescue nor None."""
    if value is None or isinstance(value, Rescue):
        return value
    raise TypeError(
        f"rescue must be a Rescue, such as Rescue(tries=3, factor=0.5), not {description(value)}."
    )


class Copy(eqx.Module):
    """What a step changes of each system: fields of the batch by name, flags of the state, and the rows of
    algorithm and hooks. None stands for shared arrays, of which there is no copy."""

    integrator: Any
    memory: Any
    atoms: dict[str, Shaped[Data, "atoms ..."]] = per_atom()
    systems: dict[str, Shaped[Data, "systems ..."]] = per_system()


class RescueState(eqx.Module):
    """What a run with a rescue keeps of each system.

    Attributes:
        older, newer: the last but one copy and the last one. At the start they are the same.
        older_step, newer_step: [systems], `steps_taken` of the copies; -1 where there is none.
        factor: [systems], on the time step.
        failed_in: [systems], the step of the last rescue; `back_to`: that of the copy to which it went back.
        reason: [systems], why, as in `batch.reason`.
    """

    older: Copy
    newer: Copy
    older_step: Int[Data, " systems"] = per_system()
    newer_step: Int[Data, " systems"] = per_system()
    factor: Float[Data, " systems"] = per_system()
    failed_in: Int[Data, " systems"] = per_system()
    back_to: Int[Data, " systems"] = per_system()
    reason: Int[Data, " systems"] = per_system()


def count_rescues(batch: Batch) -> Batch:
    """The batch with an extra that counts rescues: none yet."""
    extras = {**batch.system_extras, RESCUES: jnp.zeros_like(batch.steps_taken)}
    return dataclasses.replace(batch, system_extras=extras)


def restart_rescue(held: RescueState, new: Bool[Data, " systems"]) -> RescueState:
    """What is kept, without what belongs to other systems than those that have entered in these rows."""
    return dataclasses.replace(
        held,
        older_step=jnp.where(new, -1, held.older_step),
        newer_step=jnp.where(new, -1, held.newer_step),
        factor=jnp.where(new, 1, held.factor),
    )


def has_rescue(engine: Any) -> bool:
    """Whether any part of an engine has a rescue."""
    return any(policy_of(engine, part) is not None for part in engine.parts)


def policy_of(engine: Any, part: Any) -> Rescue | None:
    """The rescue of a part of a pipeline: its own, otherwise that of the pipeline."""
    return engine.rescue if part.rescue is None else part.rescue


__all__ = [
    "RESCUES",
    "Copy",
    "Rescue",
    "RescueState",
    "as_rescue",
    "count_rescues",
    "has_rescue",
    "policy_of",
    "restart_rescue",
]
