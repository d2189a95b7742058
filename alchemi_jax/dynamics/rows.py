"""Rows of a state moved to other places: in a refilled batch, or in a smaller one.

What moves is the same state: of the batch, of the algorithms and of the hooks' memories the rows, of the
neighbor list the references from which it is made again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import start
from alchemi_jax.dynamics.admission import level_by_length, restart_rows
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.updates import own_state
from alchemi_jax.errors import name_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import atom_rows, declares_levels, level_fields, select, unsafe_replace
from alchemi_jax.systems.segments import to_atoms


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics

#: What a system brings; all else is begun afresh, or said by its place.
_BROUGHT = (
    *("positions", "numbers", "masses", "velocities", "fixed"),
    *("cell", "pbc", "charge", "spin", "system_id", "atom_extras", "system_extras"),
)


class Capacities(NamedTuple):
    """Of a batch: places for systems and for atoms."""

    systems: int
    atoms: int


def capacities(batch: Batch) -> Capacities:
    """Those of a batch."""
    return Capacities(batch.system_capacity, batch.atom_capacity)


class RowPlan(eqx.Module):
    """Where the rows of the new batch come from: `kept` [systems] ones from these rows of the old one,
    `systems` [systems] and `atoms` [atoms]. Arrays of numpy or tracers."""

    kept: Any
    systems: Any
    atoms: Any


def check_rows_may_move(engine: AbstractDynamics, where: str) -> None:
    """Refuses what would need to know which system is in which row.

    Args:
        where: why systems move, as the sentence says it: "with a sampler systems come and go".

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
    for group in engine.groups:
        for hook in group.hooks:
            if getattr(hook, "needs_fixed_systems", False):
                raise ValueError(
                    f"{name_of(hook)} relates systems of a batch to one another, but {where}: run it on a "
                    "batch of fixed systems."
                )


def plan_rows(sizes: np.ndarray, stay: np.ndarray, room: Capacities) -> RowPlan:
    """Systems that stay come first, in their order.

    Args:
        sizes: [systems], atoms of all systems in the old batch.
        stay: rows of those that stay.
        room: of the new batch.
    """
    rows = atom_rows((np.cumsum(sizes) - sizes)[stay], sizes[stay])
    systems = np.zeros(room.systems, np.int32)
    systems[: len(stay)] = stay
    atoms = np.zeros(room.atoms, np.int32)
    atoms[: len(rows)] = rows
    return RowPlan(np.arange(room.systems) < len(stay), systems, atoms)


def pack_incoming(
    old: Batch, sizes: np.ndarray, kept: int, host: Batch | None, room: Capacities, largest: int = 0
) -> Batch:
    """The systems that enter at their places of the new batch; elsewhere what stands in padding.

    Arrays of numpy: compiled code takes them as they are.

    Args:
        old: says which fields there are, and of which dtypes.
        sizes: [systems], atoms of all systems of the new batch.
        kept: so many stay, and come first.
        host: those that enter, on the host.
        room: of the new batch.
        largest: bound for the atoms of a system.
    """
    n_systems, total = len(sizes), int(sizes.sum())
    length = {"atom": room.atoms, "system": room.systems}
    begin = {"atom": int(sizes[:kept].sum()), "system": kept}
    empty: dict[tuple, np.ndarray] = {}

    def placed(level: str, fill: Any, values: Any, like: Any) -> np.ndarray:
        if values is None:
            # One array for all that are alike.
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
            rows = {k: placed(level, fill, None if given is None else given[k], v) for k, v in like.items()}
            fields[f.name] = rows
        else:
            fields[f.name] = placed(level, fill, given, like)
    owner = np.full(room.atoms, room.systems, np.int32)
    owner[:total] = np.repeat(np.arange(n_systems, dtype=np.int32), sizes)
    starts = np.full(room.systems, total, np.int32)
    starts[:n_systems] = np.cumsum(sizes) - sizes
    counts = np.zeros(room.systems, np.int32)
    counts[:n_systems] = sizes
    fields |= {"batch_idx": owner, "first_atom": starts, "atoms_per_system": counts}
    return unsafe_replace(old, **fields, meta=None, largest=max(old.largest, largest))


def move_rows(
    engine: AbstractDynamics,
    state: DynamicsState,
    incoming: Batch,
    move: RowPlan,
    sizes: nl.ListSizes | None,
) -> DynamicsState:
    """The state with its rows moved, and those of systems that enter begun; their state of the algorithm is
    not yet: it asks for forces. Traced.

    Args:
        incoming: of `pack_incoming`.
        sizes: of the neighbor list that is made again; None: there is none.
    """
    kept = move.kept
    atoms = to_atoms(incoming, kept) & incoming.atom_mask
    layout = {name: getattr(incoming, name) for name in ("batch_idx", "first_atom", "atoms_per_system")}
    moved = rows(dataclasses.replace(state.batch, largest=incoming.largest), move)
    batch = select(atoms, kept, moved, start.begun(incoming))
    batch = batch.replace(**layout)

    def by_system(values: Array, fresh: Any) -> Array:
        return jnp.where(kept, values[move.systems], fresh)

    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        for i, new in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = restart_rows(batch, ~kept, new, _moved_memory(state.batch, move, memory[i]))
    neighbors, lists = None, state.neighbors
    if lists is not None and sizes is not None:
        # A carrier of the references, of the new shapes while all else is of the old.
        references = unsafe_replace(
            lists,
            ref_positions=lists.ref_positions[move.atoms],
            ref_cell=lists.ref_cell[move.systems],
            ref_pbc=lists.ref_pbc[move.systems],
            ref_id=by_system(lists.ref_id, -2),
        )
        neighbors = nl.resized(batch, references, sizes)
    return state.replace(
        batch=batch,
        neighbors=neighbors,
        memory=tuple(memory),
        newly_converged=jnp.zeros_like(kept),
        moved=by_system(state.moved, False),
        failed_at=by_system(state.failed_at, -1),
        came_from=by_system(state.came_from, -1),
    )


def move_algorithm_rows(
    engine: AbstractDynamics, old: DynamicsState, new: DynamicsState, incoming: Batch, move: RowPlan
) -> DynamicsState:
    """`new` with the algorithms' own rows: moved from `old`, begun for those that entered. Traced."""
    atoms = to_atoms(incoming, move.kept) & incoming.atom_mask
    fresh = own_state(engine, new.batch)
    return new.replace(integrator=select(atoms, move.kept, rows(old.integrator, move), fresh))


def rows(module: Any, move: RowPlan) -> Any:
    """A Module whose fields declare levels, None or a tuple of these, with its rows moved."""
    if module is None:
        return None
    if isinstance(module, tuple):
        return tuple(rows(part, move) for part in module)
    index = {"atom": move.atoms, "system": move.systems}
    changed = {
        name: jax.tree.map(lambda x, level=level: x[index[level]], getattr(module, name))
        for name, level in level_fields(module)
        if level != "shared"
    }
    return dataclasses.replace(module, **changed)


def _moved_memory(batch: Batch, move: RowPlan, memory: Any) -> Any:
    """A hook's memory with its rows moved: by declared levels, else by the length of leading axes."""
    if declares_levels(memory):
        return rows(memory, move)
    index = {"system": move.systems, "atom": move.atoms}

    def row(x: Array) -> Array:
        level = level_by_length(batch, x)
        return x if level is None else x[index[level]]

    return jax.tree.map(row, memory)
