"""The state that a run begins with, made on the host: capacities are chosen here."""

from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.check import check_arrays, check_per_system, check_systems
from alchemi_jax.dynamics.finish import warn_failed
from alchemi_jax.dynamics.origin import Origin
from alchemi_jax.dynamics.out_of_memory import explain_out_of_memory
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.segments import Report, compiled_initial_state, evaluate_fresh
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import HookSet
from alchemi_jax.models.base import with_extra_results
from alchemi_jax.parameters import as_key
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import is_traced


def init(
    engine: Engine,
    batch: Batch,
    key: PRNGKeyArray | None,
    builder: str | None = None,
    waiting: nl.Needs | None = None,
) -> tuple[DynamicsState, Report]:
    """See `AbstractDynamics.init`: the state, and its report. `waiting`: see `guess_sizes`."""
    if is_traced((batch, engine)):
        raise ValueError(
            f"{name_of(engine)}.init chooses the capacities of neighbor lists on the host, so it cannot "
            "be traced: call it outside of jit, vmap and grad, or as init(batch, like=state), and transform "
            "loop, rollout or step."
        )
    device, meta = Partitioned(engine.on_device()), batch.meta
    batch = prepare_batch(engine, batch)
    with explain_out_of_memory(engine, lambda: batch.with_meta(meta)):
        state = compiled_initial_state(without_hooks(engine), batch, as_key(key))
        neighbors = nl.unbuilt_list(batch.with_meta(meta), engine.model.requirements, builder, waiting)
        state = unsafe_replace(state, neighbors=neighbors)
        state, report = evaluate_fresh(device, state)
    state = unsafe_replace(state, batch=state.batch.with_meta(meta), origin=Origin(engine))
    if report.failed:
        warn_failed(engine, state.batch)
    return state, report


def prepare_batch(engine: Engine, batch: Batch) -> Batch:
    """The batch with room for all results of the model, after all checks.

    Raises:
        ValueError: naming the system or field that does not fit the engine.
    """
    check_arrays(engine, "init", batch)
    check_systems(engine, batch)
    for part in engine.parts:
        check_per_system(part, batch)
    return with_extra_results(_uncommitted(batch), engine.model)


def _uncommitted(batch: Batch) -> Batch:
    """The batch without names; if it was put on the default device, as if it had not been: it needs no other
    code."""
    leaves, treedef = jax.tree.flatten(batch)
    arrays = [x for x in leaves if isinstance(x, jax.Array)]
    if any(x.committed for x in arrays):
        default = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore
        if all(x.devices() == {default} for x in arrays):
            return jax.device_put(jax.device_get(batch))
    elif len(arrays) == len(leaves):
        return jax.tree.unflatten(treedef, leaves)
    return jax.device_put(batch)


def without_hooks(engine: Engine) -> Partitioned[Engine]:
    """The engine for programs that call no hooks: these depend on memories alone."""

    def bare(x: Any) -> Any:
        return x.only_memories() if isinstance(x, HookSet) else x

    return Partitioned(jax.tree.map(bare, engine.on_device(), is_leaf=lambda x: isinstance(x, HookSet)))


__all__ = ["init", "prepare_batch", "without_hooks"]
