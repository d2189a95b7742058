"""Move the rows of a state to other places: in a refilled batch, or in a smaller one.

Rows of the batch, of the state of the algorithms and of the memories of hooks move, and the references of the
neighbor list, from which the list is built again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.enter import restart_rows
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rescue import count_rescues, restart_rescue
from alchemi_jax.dynamics.start import start_bookkeeping
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows, map_by_level, select, unsafe_replace
from alchemi_jax.systems.metadata import EMPTY
from alchemi_jax.systems.segments import to_atoms


#: Fields that a system brings; the others start from scratch, or follow from its place.
_BROUGHT = (
    *("positions", "numbers", "masses", "velocities", "fixed", "fixed_components"),
    *("cell", "pbc", "charge", "spin", "system_id", "atom_extras", "system_extras"),
)


class Capacities(NamedTuple):
    """Places for systems and for atoms in a batch."""

    systems: int
    atoms: int


def capacities(batch: Batch) -> Capacities:
    """The capacities of a batch."""
    return Capacities(batch.system_capacity, batch.atom_capacity)


class RowPlan(eqx.Module):
    """Where the rows of the new batch come from; numpy arrays or tracers.

    Attributes:
        kept: [systems], whether a system comes from the old batch.
        systems, atoms: [systems], [atoms], its rows in the old batch.
    """

    kept: Any
    systems: Any
    atoms: Any


def check_rows_may_move(engine: Engine, where: str) -> None:
    """Check that neither the engine nor its hooks rely on which system is in which row.

    Args:
        where: why systems move, for the message: "with a sampler systems come and go".

    Raises:
        ValueError: naming the engine and its parameter, or the hook.
    """
    for part in engine.parts:
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if isinstance(value, jax.Array) and value.ndim:
                raise ValueError(
                    f"{name_of(part)}.{f.name} has one value per system, but {where}: give one number, or "
                    "set what differs by a hook."
                )
    check_relations(engine, where, "run it on a batch of fixed systems")


def check_relations(engine: Engine, where: str, instead: str) -> None:
    """Check that no hook relates systems of a batch to one another.

    Args:
        where: why it must not, and `instead`: what to do, for the message.

    Raises:
        ValueError: naming the hook.
    """
    for group in engine.groups:
        for hook in group.hooks:
            if flag(hook, "needs_fixed_systems"):
                raise ValueError(
                    f"{name_of(hook)} relates systems of a batch to one another, but {where}: {instead}."
                )


def plan_rows(sizes: Int[np.ndarray, " old"], stay: Int[np.ndarray, " stay"], room: Capacities) -> RowPlan:
    """A plan in which the systems that stay come first, in their order.

    Args:
        sizes: number of atoms of each system of the old batch.
        stay: rows of the systems that stay.
        room: capacities of the new batch.
    """
    rows = atom_rows((np.cumsum(sizes) - sizes)[stay], sizes[stay])
    systems = np.zeros(room.systems, np.int32)
    systems[: len(stay)] = stay
    atoms = np.zeros(room.atoms, np.int32)
    atoms[: len(rows)] = rows
    return RowPlan(np.arange(room.systems) < len(stay), systems, atoms)


def pack_incoming(
    old: Batch,
    sizes: Int[np.ndarray, " systems"],
    kept: int,
    host: HostBatch | None,
    room: Capacities,
    largest: int = 0,
) -> Batch:
    """The systems that enter, in their rows of the new batch; the other rows are padding. Numpy arrays.

    Args:
        old: the old batch, for names and dtypes of the fields.
        sizes: number of atoms of each system of the new batch.
        kept: number of systems that stay; they come first.
        host: the systems that enter.
        room: capacities of the new batch.
        largest: bound for the number of atoms of a system.
    """
    n_systems, total = len(sizes), int(sizes.sum())
    length = {"atom": room.atoms, "system": room.systems}
    begin = {"atom": int(sizes[:kept].sum()), "system": kept}
    empty: dict[tuple, np.ndarray] = {}

    def place(level: str, fill: Any, values: Any, like: Any) -> np.ndarray:
        if values is None:
            # Fields of the same shape, dtype and fill share one array.
            shape = (length[level], *like.shape[1:])
            key = (fill, shape, like.dtype)
            if key not in empty:
                empty[key] = np.full(shape, fill, like.dtype)
            return empty[key]
        out = np.full((length[level], *like.shape[1:]), fill, like.dtype)
        out[begin[level] : begin[level] + len(values)] = values
        return out

    fields: dict[str, Any] = {}
    for f in dataclasses.fields(old):
        level = f.metadata.get("level")
        if level is None:
            continue
        like, fill = getattr(old, f.name), f.metadata["fill"]
        given = getattr(host, f.name) if host is not None and f.name in _BROUGHT else None
        if isinstance(like, dict):
            # Results of the model are not among what a system brings: NaN until it is evaluated.
            brought = {} if given is None else given
            unknown = {k for k, v in like.items() if k not in brought and v.dtype.kind == "f"}
            fields[f.name] = {
                k: place(level, np.nan if k in unknown else fill, brought.get(k), v) for k, v in like.items()
            }
        else:
            fields[f.name] = place(level, fill, given, like)
    owner = np.full(room.atoms, room.systems, np.int32)
    owner[:total] = np.repeat(np.arange(n_systems, dtype=np.int32), sizes)
    starts = np.full(room.systems, total, np.int32)
    starts[:n_systems] = np.cumsum(sizes) - sizes
    counts = np.zeros(room.systems, np.int32)
    counts[:n_systems] = sizes
    fields |= {"batch_idx": owner, "first_atom": starts, "atoms_per_system": counts}
    return unsafe_replace(old, **fields, meta=EMPTY, largest=max(old.largest, largest))


def move_rows(
    engine: Engine,
    state: DynamicsState,
    incoming: Batch,
    plan: RowPlan,
    sizes: nl.ListSizes | None,
) -> DynamicsState:
    """The state with its rows moved. Systems that enter are fresh: the next pass evaluates them. Traced.

    Args:
        incoming: result of `pack_incoming`.
        sizes: capacities of the neighbor list, which the next pass builds again; None: there is no list.
    """
    kept = plan.kept
    atoms = to_atoms(incoming, kept) & incoming.atom_mask
    layout = {name: getattr(incoming, name) for name in ("batch_idx", "first_atom", "atoms_per_system")}
    moved = take_rows(unsafe_replace(state.batch, largest=incoming.largest), plan)
    started, rescue = start_bookkeeping(incoming), None
    if state.rescue is not None:
        started, rescue = count_rescues(started), restart_rescue(take_rows(state.rescue, plan), ~kept)
    batch = select(atoms, kept, moved, started)
    batch = batch.replace(**layout)
    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        for i, initial in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = restart_rows(batch, ~kept, initial, take_rows(memory[i], plan))
    neighbors, old_list = None, state.neighbors
    if old_list is not None and sizes is not None:
        # Only the references have the new shapes here; `resized` makes the rest.
        references = unsafe_replace(
            old_list,
            ref_positions=old_list.ref_positions[plan.atoms],
            ref_cell=old_list.ref_cell[plan.systems],
            ref_inverse=old_list.ref_inverse[plan.systems],
            ref_pbc=old_list.ref_pbc[plan.systems],
            ref_id=jnp.where(kept, old_list.ref_id[plan.systems], -2),
        )
        neighbors = nl.resized(references, sizes)
    flags = {
        name: jnp.where(kept, getattr(state, name)[plan.systems], value) for name, value in FLAGS.items()
    }
    flags["fresh"] = flags["fresh"] & batch.system_mask
    # Systems that enter get their state of the algorithm when they are evaluated.
    return state.replace(
        batch=batch,
        neighbors=neighbors,
        memory=tuple(memory),
        integrator=take_rows(state.integrator, plan),
        rescue=rescue,
        **(flags | {"newly_converged": jnp.zeros_like(kept)}),
    )


def take_rows(tree: Any, plan: RowPlan) -> Any:
    """A tree with fields that declare levels, with its rows moved."""
    index = {"atom": plan.atoms, "system": plan.systems}
    return map_by_level(lambda level, x: x if level == "shared" else x[index[level]], tree)


__all__ = [
    "Capacities",
    "RowPlan",
    "capacities",
    "check_relations",
    "check_rows_may_move",
    "move_rows",
    "pack_incoming",
    "plan_rows",
    "take_rows",
]
