"""Parts of a batch or state, one for each device, and the whole that they make. On the host."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.devices.deal import Room
from alchemi_jax.dynamics.init import without_hooks
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import Capacities
from alchemi_jax.dynamics.saved import is_key, plain
from alchemi_jax.dynamics.segments import compiled_initial_state
from alchemi_jax.dynamics.shrink import shrink_state
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows, level_fields, map_by_level, unsafe_replace


Rows = Int[np.ndarray, " mine"]
_LAYOUT = ("batch_idx", "first_atom", "atoms_per_system")
#: Of a neighbor list: what each system has, by level.
_REFERENCES = {"ref_positions": "atom"} | dict.fromkeys(
    ("ref_cell", "ref_inverse", "ref_pbc", "ref_id"), "system"
)


def on_device(tree: Any, device: Any) -> Any:
    """The arrays of a tree on a device, not committed to it, so that they compile to the same code as others.

    Args:
        device: None: the one that JAX uses anyway; then the tree is returned as it is.
    """
    if device is None:
        return tree
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    host = dict(zip(map(id, arrays), jax.device_get([plain(x) for x in arrays]), strict=True))
    with jax.default_device(device):

        def put(x: Any) -> Any:
            if not isinstance(x, jax.Array):
                return x
            moved = jax.device_put(host[id(x)])
            return jax.random.wrap_key_data(moved, impl=jax.random.key_impl(x)) if is_key(x) else moved

        return jax.tree.map(put, tree)


# -- parts -----------------------------------------------------------------------------------------


def named_systems(batch: Batch) -> HostBatch:
    """All systems on the host, each with a name, for `part_of_batch`."""
    return batch.to_host(meta=batch.meta.filled(batch.num_systems))


def part_of_batch(systems: HostBatch, rows: Rows, room: Room) -> Batch:
    """The batch of some systems, with their names and ids."""
    return Batch.from_host(systems.take(rows), room.atoms, room.systems, largest=room.largest)


def part_of_state(engine: Engine, state: DynamicsState, rows: Rows, room: Room) -> DynamicsState:
    """The state of some systems; of the neighbor list the references go along."""
    sizes = np.asarray(state.batch.atoms_per_system)
    part = shrink_state(
        Partitioned(engine.on_device()), state, sizes, rows, Capacities(room.systems, room.atoms)
    )
    meta = state.batch.meta.filled(state.batch.num_systems).of_rows(rows)
    # In the rows of the whole a system is moved or has converged as it was; moving rows forgets the latter.
    newly = np.zeros(room.systems, bool)
    newly[: len(rows)] = np.asarray(state.newly_converged)[rows]
    return unsafe_replace(part, batch=part.batch.with_meta(meta), newly_converged=jax.device_put(newly))


# -- the whole -------------------------------------------------------------------------------------


class Places:
    """Where the rows of parts are in the whole.

    Attributes:
        of: of each part, by level, the rows of the whole. padding: by level, the rows of the whole that are
            padding. lengths: by level, of the whole.
    """

    def __init__(self, whole: Batch, parts: Sequence[Rows]):
        sizes, first = np.asarray(whole.atoms_per_system), np.asarray(whole.first_atom)
        self.of = [{"system": rows, "atom": atom_rows(first[rows], sizes[rows])} for rows in parts]
        self.lengths = {"system": whole.system_capacity, "atom": whole.atom_capacity}
        counts = {"system": int((sizes > 0).sum()), "atom": int(sizes.sum())}
        self.padding = {level: slice(counts[level], n) for level, n in self.lengths.items()}

    def put(self, level: str, old: Any, parts: Sequence[Any]) -> Any:
        """The rows of the parts in a copy of an array of the whole."""
        if is_key(old):
            for places, new in zip(self.of, parts, strict=True):
                index = places[level]
                old = old.at[index].set(jax.device_put(new)[: len(index)])
            return old
        out = np.array(old)
        for places, new in zip(self.of, parts, strict=True):
            index = places[level]
            out[index] = np.asarray(new)[: len(index)]
        return out


def whole_batch(whole: Batch, parts: Sequence[Rows], batches: Sequence[Batch]) -> Batch:
    """The batch of all systems, in their rows, with the names that `whole` has.

    Args:
        whole: the batch that was dealt: capacities and padding. batches: of the parts, after their runs.
    """
    places, fields = Places(whole, parts), {}
    hosts = [jax.device_get({name: getattr(b, name) for name, _ in level_fields(b)}) for b in batches]
    for name, level in level_fields(whole):
        if name in _LAYOUT:
            fields[name] = getattr(whole, name)
            continue
        fill = type(whole).__dataclass_fields__[name].metadata["fill"]
        length = whole.atom_capacity if level == "atom" else whole.system_capacity

        def gather(*mine: Any, level: str = level, fill: Any = fill, length: int = length) -> Any:
            empty = np.full((length, *mine[0].shape[1:]), fill, mine[0].dtype)
            return places.put(level, empty, mine)

        fields[name] = jax.tree.map(gather, *(host[name] for host in hosts))
    return unsafe_replace(whole, **jax.device_put(fields))


def empty_whole(engine: Engine, batch: Batch, key: Any) -> DynamicsState:
    """A state of all systems before the first step, to be filled by `whole_state`."""
    state = compiled_initial_state(without_hooks(engine), batch, key)
    lists = nl.unbuilt_list(batch, engine.model.requirements)
    return unsafe_replace(state, neighbors=lists, batch=state.batch.with_meta(batch.meta))


def whole_state(
    whole: DynamicsState, parts: Sequence[Rows], states: Sequence[DynamicsState]
) -> DynamicsState:
    """The state of all systems, in their rows.

    Args:
        whole: a state of all systems that begins the run: capacities, padding, names. states: of the parts.
            The step count is that of the part which is ahead of the others; where one has ended before, its
            systems are finished.
    """
    places = Places(whole.batch, parts)
    steps = [int(state.step_count) for state in states]
    ahead, last = int(np.argmax(steps)), max(steps)

    def put(level: str, old: Any, *mine: Any) -> Any:
        return mine[ahead] if level == "shared" else places.put(level, old, mine)

    def slim(state: DynamicsState) -> DynamicsState:
        return unsafe_replace(state, neighbors=None, records=())

    merged = map_by_level(put, slim(whole), *map(slim, states))
    layout = {name: getattr(whole.batch, name) for name in _LAYOUT}
    batch = unsafe_replace(merged.batch, **layout, largest=whole.batch.largest, meta=whole.batch.meta)
    flags = {
        name: places.put("system", getattr(whole, name), [getattr(s, name) for s in states]) for name in FLAGS
    }
    for rows, step in zip(parts, steps, strict=True):
        if step < last:
            # It has ended before: its systems did not move in the last step.
            flags["newly_converged"][rows] = flags["moved"][rows] = False
    lists = whole.neighbors
    if lists is not None:
        found: list[Any] = [s.neighbors for s in states]
        kept = {
            name: places.put(level, getattr(lists, name), [getattr(x, name) for x in found])
            for name, level in _REFERENCES.items()
        }
        kept["builds"] = np.int32(max(int(x.builds) - int(x.built) for x in found))
        lists = nl.resized(unsafe_replace(lists, **kept), _sizes(lists, found))
    merged = unsafe_replace(merged, batch=batch, **flags, step_count=np.int32(last))
    return unsafe_replace(jax.device_put(merged), neighbors=lists, records=whole.records)


def _sizes(lists: nl.NeighborList, parts: Sequence[nl.NeighborList]) -> nl.ListSizes:
    """The capacities of the whole list: places of each atom that suffice for all parts."""
    most = max(part.sizes.neighbors for part in parts)
    if most <= lists.sizes.neighbors:
        return lists.sizes
    return dataclasses.replace(lists.sizes, neighbors=most)


__all__ = [
    "Places",
    "Rows",
    "empty_whole",
    "named_systems",
    "on_device",
    "part_of_batch",
    "part_of_state",
    "whole_batch",
    "whole_state",
]
