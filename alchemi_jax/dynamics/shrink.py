"""A run whose batch becomes smaller: finished systems leave the compute.

In a batch of fixed shapes a finished system costs as much as one that moves. Where half of the places
are idle, those that still move are put together into a batch half as large, or a quarter, and so on, and
the run goes on there. Each size is compiled once in a process. At the end, or when the run is stopped,
all systems stand again where they were.

When it happens is a matter of who is finished, never of time: the same run does the same again.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics import start
from alchemi_jax.dynamics.admission import level_by_length
from alchemi_jax.dynamics.driver import _compiled, _Report, _report, _Run, grow_lists
from alchemi_jax.dynamics.partitioned import Partitioned
from alchemi_jax.dynamics.rows import (
    Capacities,
    RowPlan,
    capacities,
    check_rows_may_move,
    move_algorithm_rows,
    move_rows,
    pack_incoming,
    plan_rows,
)
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.systems.batch import Batch, Metadata
from alchemi_jax.systems.levels import declares_levels, level_fields, unsafe_replace


if TYPE_CHECKING:
    from alchemi_jax.dynamics.engine import AbstractDynamics


def check(engine: AbstractDynamics, batch: Batch) -> None:
    """Refuses what relies on the same systems in the same rows.

    Raises:
        ValueError: naming the hook, or the engine and its parameter.
    """
    check_rows_may_move(engine, "with shrink=True systems change their rows")
    lengths = capacities(batch)
    for group in engine.groups:
        for hook in (held.hook for held in [*group.hooks.host, *group.hooks.recording]):
            if not getattr(hook, "follows_systems", False):
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
"""A batch is not made smaller than by this factor: then it costs little, and each size must be compiled."""


class Shrinking:
    """Steps of a run, in ever smaller batches; `restore` makes it one of all systems again.

    Until then the states that were left behind are held: in all at most as much again as the first.
    """

    def __init__(self, run: _Run):
        check(run.engine, run.state.batch)
        self.run = run
        self.sizes = np.asarray(run.state.batch.atoms_per_system)
        self.least = -(-run.state.batch.system_capacity // LEAST)
        #: Places for systems in all steps together.
        self.places = 0
        #: What was left behind, and who went on from there; the largest batch first.
        self.left: list[tuple[DynamicsState, Metadata | None, RowPlan, np.ndarray]] = []

    def advance(self, stop: int) -> None:
        """Until `stop` completed steps, or until all systems are finished."""
        few = self.run.state.batch.system_capacity // 2
        while True:
            begun = self.run.report.step
            self.run.advance(stop, few)
            self.places += (self.run.report.step - begun) * self.run.state.batch.system_capacity
            if not self.run.report.active or self.run.report.step >= stop:
                return
            # Where their atoms are too many for half the room, fewer are waited for.
            few = (self.run.state.batch.system_capacity if self._shrink() else self.run.report.active) // 2

    def _shrink(self) -> bool:
        run = self.run
        run.drain()
        state = run.state
        status = np.asarray(state.batch.status)[: len(self.sizes)]
        stay = np.flatnonzero((status < run.engine.exit_status) & (self.sizes > 0))
        room = smaller(capacities(state.batch), len(stay), int(self.sizes[stay].sum()), self.least)
        if room is None:
            return False
        meta = run.meta
        self.left.append((state, meta, plan_rows(self.sizes, stay, room), self.sizes))
        after, report = shrunk(run.apart, state, self.sizes, stay, room)
        run.meta = None if meta is None else Metadata([meta[i] for i in stay.tolist()])
        run.put(after, report)
        self.sizes = self.sizes[stay]
        return True

    def restore(self) -> None:
        """Puts all systems back where they were."""
        run, state = self.run, self.run.state
        if not self.left:
            return
        while self.left:
            before, run.meta, move, sizes = self.left.pop()
            state = merged(before, state, move, sizes)
        run.put(jax.device_put(state))


def smaller(room: Capacities, systems: int, atoms: int, least: int = 1) -> Capacities | None:
    """Room halved as often as so many systems and atoms still fit; None where it would stay as it is.

    Args:
        least: places for systems below which it is not halved.
    """
    out = room
    while True:
        half = Capacities(-(-out.systems // 2), -(-out.atoms // 2))
        if half.systems < least:
            return None if out == room else out
        # Told by its length whether an array is of atoms or of systems, as before.
        half = half if (half.systems == half.atoms) == (room.systems == room.atoms) else out
        if half == out or systems > half.systems or atoms > half.atoms:
            return None if out == room else out
        out = half


def shrunk(
    apart: Partitioned[AbstractDynamics],
    state: DynamicsState,
    sizes: np.ndarray,
    stay: np.ndarray,
    room: Capacities,
) -> tuple[DynamicsState, _Report]:
    """The state of some of the systems in a batch of other capacities, and its report.

    Args:
        sizes: [systems], atoms of all systems.
        stay: rows of those that go on.
    """
    move = plan_rows(sizes, stay, room)
    incoming = pack_incoming(state.batch, sizes[stay], len(stay), None, room)
    sizes_of = None
    if state.neighbors is not None:
        sizes_of = state.neighbors.sizes.times(room.systems / state.batch.system_capacity)
    return grow_lists(_shrunk, apart, state, incoming, move, sizes_of)


@functools.partial(_compiled, static_argnames="list_sizes")
def _shrunk(
    apart: Partitioned[AbstractDynamics],
    state: DynamicsState,
    incoming: Batch,
    move: RowPlan,
    list_sizes: nl.ListSizes | None,
) -> tuple[DynamicsState, Array]:
    engine = apart.combine()
    after = move_rows(engine, state, incoming, move, list_sizes)
    after = move_algorithm_rows(engine, state, after, incoming, move)
    after = after.replace(records=start.empty_buffers(engine, engine._begin(after)))
    return after, _report(engine, after)


def merged(before: DynamicsState, after: DynamicsState, move: RowPlan, sizes: np.ndarray) -> DynamicsState:
    """`before` with the rows that moved as they are in `after`, and all else that is not of systems.

    Arrays of numpy. The neighbor list stays that of before: a function of its references, it is renewed
    where these are far.
    """
    n = int(np.asarray(move.kept).sum())
    systems = np.asarray(move.systems)[:n]
    n_atoms = int(sizes[systems].sum())
    index = {"system": systems, "atom": np.asarray(move.atoms)[:n_atoms]}

    def put(level: str, old: Any, new: Any) -> Any:
        rows, count = index[level], len(index[level])
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return old.at[rows].set(new[:count])
        out = np.array(old)
        out[rows] = np.asarray(new)[:count]
        return out

    def by_length(old: Any, new: Any) -> Any:
        level = level_by_length(before.batch, old)
        return new if level is None else put(level, old, new)

    def by_level(old: Any, new: Any) -> Any:
        if isinstance(old, tuple):
            return tuple(by_level(a, b) for a, b in zip(old, new, strict=True))
        if not declares_levels(old):
            return jax.tree.map(by_length, old, new)
        moved = {
            name: jax.tree.map(functools.partial(put, level), getattr(old, name), getattr(new, name))
            for name, level in level_fields(old)
            if level != "shared"
        }
        return unsafe_replace(new, **moved)

    stays = ("batch_idx", "first_atom", "atoms_per_system", "largest")
    batch = unsafe_replace(
        by_level(before.batch, after.batch), **{name: getattr(before.batch, name) for name in stays}
    )
    # Who was left behind did not move in the last step.
    still = {name: np.zeros(before.batch.system_capacity, bool) for name in ("newly_converged", "moved")}
    still |= {name: getattr(before, name) for name in ("failed_at", "came_from")}
    return unsafe_replace(
        before,
        batch=batch,
        integrator=by_level(before.integrator, after.integrator),
        memory=by_level(before.memory, after.memory),
        step_count=after.step_count,
        key=after.key,
        **{name: put("system", old, getattr(after, name)) for name, old in still.items()},
    )
