"""A run in which the batch becomes smaller, so that finished systems cost nothing.

In a batch of fixed shapes a finished system costs as much as one that moves. When half of the places are
idle, the unfinished systems move to a batch of half the size, later of a quarter, and so on, and the run
continues there. Each size is compiled once in a process. At the end, or when the run is stopped, all systems
are back in their rows.

When the batch shrinks depends on which systems are finished, never on time: a run is reproducible.
"""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.driver import Run
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rows import (
    Capacities,
    RowPlan,
    capacities,
    check_rows_may_move,
    move_rows,
    pack_incoming,
    plan_rows,
)
from alchemi_jax.dynamics.segments import jit_loop
from alchemi_jax.dynamics.start import empty_buffers
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.hooks.protocol import flag
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import map_by_level, unsafe_replace
from alchemi_jax.systems.metadata import Metadata


def check(engine: Engine, batch: Batch) -> None:
    """Check that neither the engine nor its hooks rely on the same systems in the same rows.

    Raises:
        ValueError: naming the hook, or the engine and its parameter.
    """
    check_rows_may_move(engine, "with shrink=True systems change their rows")
    lengths = capacities(batch)
    for group in engine.groups:
        for hook in (entry.hook for entry in [*group.hooks.host, *group.hooks.recording]):
            if not flag(hook, "follows_systems"):
                raise ValueError(
                    f"{name_of(hook)} is not known to follow systems from row to row, as shrink=True wants "
                    "it: leave one of the two out, or set `follows_systems = True` on the hook."
                )
        for hook in group.hooks.traced:
            for path, leaf in jax.tree_util.tree_leaves_with_path(hook):
                if eqx.is_array(leaf) and leaf.ndim and leaf.shape[0] in lengths:
                    raise ValueError(
                        f"{name_of(hook)}{jax.tree_util.keystr(path)} has a value for each row, but with "
                        "shrink=True systems change their rows: leave shrink out."
                    )


LEAST = 16
"""The largest factor by which a batch shrinks: then it costs little, and each size must be compiled."""
FEWEST_EDGES = 1 << 15
"""A batch for a graph model with room for fewer edges does not shrink: compiling a network again would take
longer than the idle places."""


class ShrinkingRun:
    """Steps of a run in smaller and smaller batches; `restore` returns to the batch of all systems.

    Until then the larger states are kept: together at most twice the memory of the first.
    """

    def __init__(
        self,
        run: Run,
        larger: Sequence[DynamicsState] = (),
        stayed: Sequence[np.ndarray] = (),
        min_active: int | None = None,
    ):
        """`larger`, `stayed`, `min_active`: of a run that goes on, what `saved` gave."""
        check(run.engine, run.state.batch)
        self.run = run
        self.sizes = np.asarray(run.state.batch.atoms_per_system)
        self.stayed = list(stayed)
        #: Places for systems in all steps together.
        self.places = 0
        #: State, names, plan and sizes of each larger batch, the largest first.
        self.larger: list[tuple[DynamicsState, Metadata, RowPlan, np.ndarray]] = []
        states = [*larger, run.state]
        for state, smaller, stay in zip(larger, states[1:], stayed, strict=True):
            sizes = np.asarray(state.batch.atoms_per_system)
            plan = plan_rows(sizes, stay, capacities(smaller.batch))
            self.larger.append((state, state.batch.meta, plan, sizes))
        self.least = -(-states[0].batch.system_capacity // LEAST)
        #: The number of unfinished systems at which the batch is to shrink next.
        self.min_active = run.state.batch.system_capacity // 2 if min_active is None else min_active
        run.parts.append(self)

    def saved(self) -> tuple[list[DynamicsState], dict[str, Any]]:
        """The states of the larger batches, the rows of the systems that went on from each of them, and when
        the batch is to shrink next."""
        states = [state for state, *_ in self.larger]
        return states, {"stayed": list(self.stayed), "min_active": self.min_active}

    def advance(self, stop: int) -> None:
        """Run until `stop` completed steps, or until all systems are finished."""
        while True:
            first = self.run.report.step
            self.run.advance(stop, self.min_active)
            self.places += (self.run.report.step - first) * self.run.state.batch.system_capacity
            if not self.run.report.active or self.run.report.step >= stop:
                return
            # If their atoms did not fit into half the room, try again with half as many systems.
            self.min_active = (
                self.run.state.batch.system_capacity if self._shrink() else self.run.report.active
            ) // 2

    def _shrink(self) -> bool:
        run = self.run
        run.drain()
        state = run.state
        status = np.asarray(state.batch.status)[: len(self.sizes)]
        unfinished = (status < run.engine.exit_status) | np.asarray(state.converged_at_start)[
            : len(self.sizes)
        ]
        stay = np.flatnonzero(unfinished & (self.sizes > 0))
        room = shrink_room(capacities(state.batch), len(stay), int(self.sizes[stay].sum()), self.least)
        lists = state.neighbors
        if room is None or (lists is not None and 0 < lists.sizes.edges < FEWEST_EDGES):
            return False
        meta = run.meta
        self.larger.append((state, meta, plan_rows(self.sizes, stay, room), self.sizes))
        self.stayed.append(stay)
        after = shrink_state(run.device, state, self.sizes, stay, room)
        run.meta = meta.of_rows(stay)
        run.put(after)
        self.sizes = self.sizes[stay]
        return True

    def restore(self) -> None:
        """Put all systems back into their rows."""
        run, state = self.run, self.run.state
        if self in run.parts:
            run.parts.remove(self)
        self.stayed.clear()
        if not self.larger:
            return
        while self.larger:
            before, run.meta, plan, sizes = self.larger.pop()
            state = merge_back(before, state, plan, sizes)
        run.put(jax.device_put(state))


def shrink_room(room: Capacities, systems: int, atoms: int, least: int = 1) -> Capacities | None:
    """The capacities, halved as often as the systems and atoms still fit; None if not even once.

    Args:
        least: least number of places for systems.
    """
    out = room
    while True:
        half = Capacities(-(-out.systems // 2), -(-out.atoms // 2))
        if half.systems < least:
            return None if out == room else out
        if half == out or systems > half.systems or atoms > half.atoms:
            return None if out == room else out
        out = half


def shrink_state(
    engine: Partitioned[Engine],
    state: DynamicsState,
    sizes: Int[np.ndarray, " old"],
    stay: Int[np.ndarray, " stay"],
    room: Capacities,
) -> DynamicsState:
    """The state of some of the systems in a batch of other capacities.

    Args:
        sizes: number of atoms of each system.
        stay: rows of the systems that continue.
    """
    plan = plan_rows(sizes, stay, room)
    incoming = pack_incoming(state.batch, sizes[stay], len(stay), None, room)
    list_sizes = None
    if state.neighbors is not None:
        list_sizes = state.neighbors.sizes.times(room.systems / state.batch.system_capacity)
        if list_sizes.edges:
            # The systems that continue may be those with most edges, and growing would compile again.
            staying = Batch.from_host(state.batch.to_host(stay))
            list_sizes = nl.fit_edges(staying, state.neighbors, list_sizes)
    return _shrink_state(engine, unsafe_replace(state, records=()), incoming, plan, list_sizes=list_sizes)


@functools.partial(jit_loop, static_argnames="list_sizes")
def _shrink_state(
    engine: Partitioned[Engine],
    state: DynamicsState,
    incoming: Batch,
    plan: RowPlan,
    list_sizes: nl.ListSizes | None,
) -> DynamicsState:
    combined = engine.combine()
    after = move_rows(combined, state, incoming, plan, list_sizes)
    return after.replace(records=empty_buffers(combined, after))


def merge_back(
    before: DynamicsState, after: DynamicsState, plan: RowPlan, sizes: Int[np.ndarray, " old"]
) -> DynamicsState:
    """The larger state `before` with the rows of the smaller state `after`, and its shared fields.

    Numpy arrays. The neighbor list is that of `before`: as a function of its references it is built again
    when it is due.
    """
    n = int(np.asarray(plan.kept).sum())
    systems = np.asarray(plan.systems)[:n]
    n_atoms = int(sizes[systems].sum())
    index = {"system": systems, "atom": np.asarray(plan.atoms)[:n_atoms]}

    def put(level: str, old: Any, new: Any) -> Any:
        if level == "shared":
            return new
        rows, count = index[level], len(index[level])
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return old.at[rows].set(new[:count])
        out = np.array(old)
        out[rows] = np.asarray(new)[:count]
        return out

    layout = ("batch_idx", "first_atom", "atoms_per_system", "largest")
    batch = unsafe_replace(
        map_by_level(put, before.batch, after.batch), **{name: getattr(before.batch, name) for name in layout}
    )
    # Systems that are not in the smaller batch did not move in the last step.
    flags = {name: getattr(before, name) for name in FLAGS}
    flags |= {name: np.zeros(before.batch.system_capacity, bool) for name in ("newly_converged", "moved")}
    return unsafe_replace(
        before,
        batch=batch,
        integrator=map_by_level(put, before.integrator, after.integrator),
        memory=map_by_level(put, before.memory, after.memory),
        rescue=map_by_level(put, before.rescue, after.rescue),
        step_count=after.step_count,
        key=after.key,
        **{name: put("system", old, getattr(after, name)) for name, old in flags.items()},
    )


__all__ = ["FEWEST_EDGES", "LEAST", "ShrinkingRun", "check", "merge_back", "shrink_room", "shrink_state"]
