"""Rows of a state moved to other places: in a refilled batch, or in a smaller one.

What moves is the same state: of the batch, of the algorithms and of the hooks' memories the rows, of the
neighbor list the references from which it is made again.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.enter import restart_rows
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.start import start_bookkeeping
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows, map_by_level, select, unsafe_replace
from alchemi_jax.systems.metadata import EMPTY
from alchemi_jax.systems.segments import to_atoms


#: What a system brings; all else starts from scratch, or follows from its place.
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


def check_rows_may_move(engine: Engine, where: str) -> None:
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
            if flag(hook, "needs_fixed_systems"):
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
    old: Batch, sizes: np.ndarray, kept: int, host: HostBatch | None, room: Capacities, largest: int = 0
) -> Batch:
    """The systems that enter, in their rows of the new batch; elsewhere the values of padding.

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
        incoming: of `pack_incoming`.
        sizes: of the neighbor list, which the next pass builds again; None: there is none.
    """
    kept = plan.kept
    atoms = to_atoms(incoming, kept) & incoming.atom_mask
    layout = {name: getattr(incoming, name) for name in ("batch_idx", "first_atom", "atoms_per_system")}
    moved = take_rows(unsafe_replace(state.batch, largest=incoming.largest), plan)
    batch = select(atoms, kept, moved, start_bookkeeping(incoming))
    batch = batch.replace(**layout)
    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        for i, initial in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = restart_rows(batch, ~kept, initial, take_rows(memory[i], plan))
    neighbors, lists = None, state.neighbors
    if lists is not None and sizes is not None:
        # A carrier of the references, of the new shapes while all else is of the old.
        references = unsafe_replace(
            lists,
            ref_positions=lists.ref_positions[plan.atoms],
            ref_cell=lists.ref_cell[plan.systems],
            ref_inverse=lists.ref_inverse[plan.systems],
            ref_pbc=lists.ref_pbc[plan.systems],
            ref_id=jnp.where(kept, lists.ref_id[plan.systems], -2),
        )
        neighbors = nl.resized(references, sizes)
    flags = {
        name: jnp.where(kept, getattr(state, name)[plan.systems], value) for name, value in FLAGS.items()
    }
    flags["fresh"] = flags["fresh"] & batch.system_mask
    # The algorithm's rows of systems that enter are made when they are evaluated.
    return state.replace(
        batch=batch,
        neighbors=neighbors,
        memory=tuple(memory),
        integrator=take_rows(state.integrator, plan),
        **(flags | {"newly_converged": jnp.zeros_like(kept)}),
    )


def take_rows(tree: Any, plan: RowPlan) -> Any:
    """A tree whose fields declare levels, with its rows moved."""
    index = {"atom": plan.atoms, "system": plan.systems}
    return map_by_level(lambda level, x: x if level == "shared" else x[index[level]], tree)
