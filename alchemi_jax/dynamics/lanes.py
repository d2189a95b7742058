"""Combinations of parameters that run side by side: one compiled program takes a group of them some steps on.

A group runs in segments, so that it can be interrupted, saved, and go on with larger lists: if a list is too
small in any combination, all of the group take the segment again from the states before it.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, Shaped

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.loop import make_room_for_rows, should_continue, steps_of_budget
from alchemi_jax.dynamics.parameter_paths import with_leaf
from alchemi_jax.dynamics.start import initial_state
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.dynamics.step import step
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace


#: Steps of the first segment, and the time that later ones take, s.
_FIRST_SEGMENT = 128
_SECONDS = 0.25
#: What a list is built from again.
REFERENCES = ("ref_positions", "ref_cell", "ref_inverse", "ref_pbc", "ref_id", "builds")

Start = Callable[[Any, Batch, PRNGKeyArray], Batch]
Observable = Callable[[Batch], Shaped[Array, " systems"]]


@dataclasses.dataclass
class Group:
    """A group of combinations, [lanes], between two segments of its run.

    Attributes:
        values: of each swept parameter; `keys`: data of the PRNG keys. Numpy arrays [lanes, ...].
        states: after the last segment, each leaf [lanes, ...], with the data of keys in place of keys; None
            before the first.
        columns: the observables of these states, [lanes, systems].
        goes_on: [lanes], those for which there is something left to do.
    """

    values: dict[str, Shaped[np.ndarray, "lanes ..."]]
    keys: Shaped[np.ndarray, "lanes ..."]
    states: DynamicsState | None = None
    columns: dict[str, Shaped[Array, "lanes systems"]] = dataclasses.field(default_factory=dict)
    goes_on: Bool[np.ndarray, " lanes"] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.goes_on is not None and not self.goes_on.any()

    @property
    def step(self) -> int:
        """Number of completed steps, of the lane that has taken most."""
        return 0 if self.states is None else int(np.max(np.asarray(self.states.step_count)))


class Lanes:
    """Runs groups of one size, one after the other.

    Args:
        engine, batch, start, observe: see `sweep`; observe as pairs of name and function.
        neighbors: the list that lanes begin with; None for a model without one. It grows as lanes need it.
        impl: of the PRNG keys.
        most: steps for whose rows record buffers have room; None: there are none.
    """

    def __init__(
        self,
        engine: AbstractDynamics,
        batch: Batch,
        start: Start | None,
        observe: tuple[tuple[str, Observable], ...],
        neighbors: nl.NeighborList | None,
        impl: Any,
        most: int | None,
    ):
        self.engine, self.batch, self.start, self.observe = engine, batch, start, observe
        self.neighbors, self.impl, self.most = neighbors, impl, most
        self._cap = _FIRST_SEGMENT
        self._empty: DynamicsState | None = None

    def run(self, group: Group, before_segment: Callable[[Group], int | None]) -> None:
        """Take all steps of a group.

        Args:
            before_segment: called before each segment; it may save the group, and says at how many steps the
                segment ends at the latest (None: anywhere).
        """
        compiles = True
        while not group.done:
            latest, stop = before_segment(group), group.step + self._cap
            begun = time.perf_counter()
            complete = self._run_segment(group, stop if latest is None else min(stop, latest))
            took = time.perf_counter() - begun
            if compiles or not complete:
                # How long steps take is not known.
                pass
            elif took < _SECONDS:
                self._cap = min(2 * self._cap, 1 << 20)
            elif took > 4 * _SECONDS:
                self._cap = max(self._cap // 2, 1)
            compiles = not complete

    def _run_segment(self, group: Group, stop: int) -> bool:
        """Take steps until `stop` are complete. False if a list was too small: it is larger then."""
        given = self.empty_states(group) if group.states is None else group.states
        shared = (self.engine, self.batch, self.start, self.observe, self.neighbors, self.impl, self.most)
        # What numpy has is passed as it is: nothing is compiled to make arrays of it.
        mine: Any = (group.values, group.keys, given, np.bool_(group.states is not None), np.int32(stop))
        columns, states, report = _segment(*shared, *mine)
        more, overflow, needs = jax.device_get(report)
        if overflow.any():
            assert self.neighbors is not None
            self.neighbors, self._empty = nl.enlarge(self.neighbors, needs.max(axis=0)), None
            if group.states is not None:
                group.states = self.fit_lists(group.states)
            return False
        group.states, group.columns, group.goes_on = states, columns, more
        return True

    def empty_states(self, group: Group) -> DynamicsState:
        """Zeros in the shapes of the states of a group."""
        empty = self._empty
        if empty is None:
            shared = (self.engine, self.batch, self.start, self.neighbors, self.impl, self.most)
            shapes = eqx.filter_eval_shape(_traced_first_states, *shared, group.values, group.keys)
            empty = jax.device_put(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
            self._empty = empty
        return empty

    def fit_lists(self, states: DynamicsState) -> DynamicsState:
        """The states with lists of the present capacities, built in the next step from the same references.

        On the host; compiles nothing.
        """
        lists = states.neighbors
        if lists is None or self.neighbors is None or lists.sizes == self.neighbors.sizes:
            return states
        kept = jax.device_get({name: getattr(lists, name) for name in REFERENCES})
        return unsafe_replace(states, neighbors=self.lists_of(kept))

    def lists_of(self, kept: dict[str, Shaped[np.ndarray, "lanes ..."]]) -> nl.NeighborList:
        """Lists [lanes, ...] of the present capacities, not built, with these references (`REFERENCES`)."""
        assert self.neighbors is not None
        lanes = len(kept["builds"])
        empty = jax.device_get(nl.resized(self.neighbors, self.neighbors.sizes))
        lists = jax.tree.map(lambda x: np.broadcast_to(x, (lanes, *np.shape(x))), empty)
        return jax.device_put(unsafe_replace(lists, **kept, offset_cell=kept["ref_cell"]))


def take_lanes(group: int, lanes: int, tree: Any) -> Any:
    """The part of arrays [combinations, ...] that belongs to a group; numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x)[group * lanes : (group + 1) * lanes], tree)


def with_keys(states: DynamicsState, impl: Any) -> DynamicsState:
    """States with PRNG keys in place of their data."""
    return unsafe_replace(states, key=jax.random.wrap_key_data(states.key, impl=impl))


def _first_states(
    engine: AbstractDynamics,
    batch: Batch,
    start: Start | None,
    neighbors: nl.NeighborList | None,
    impl: Any,
    most: int | None,
    values: dict[str, Shaped[Array, "lanes ..."]],
    keys: Shaped[Array, "lanes ..."],
) -> DynamicsState:
    """States before the first evaluation, with the data of keys."""

    def first(values: dict[str, Shaped[Array, "..."]], key: Shaped[Array, "..."]) -> DynamicsState:
        state = _first(_with_values(engine, values), batch, start, neighbors, impl, most, key)
        return unsafe_replace(state, key=key)

    return jax.vmap(first)(values, keys)


#: Only traced, never compiled: it is traced once for each kind of sweep.
_traced_first_states = eqx.filter_jit(_first_states)


def _first(
    engine: AbstractDynamics,
    batch: Batch,
    start: Start | None,
    neighbors: nl.NeighborList | None,
    impl: Any,
    most: int | None,
    key: Shaped[Array, "..."],
) -> DynamicsState:
    wrapped = jax.random.wrap_key_data(key, impl=impl)
    begun = batch if start is None else start(engine, batch, wrapped)
    state = initial_state(engine, begun, neighbors, wrapped)
    return state if most is None else make_room_for_rows(engine, state, most)


def _with_values(engine: AbstractDynamics, values: dict[str, Shaped[Array, "..."]]) -> AbstractDynamics:
    for name, value in values.items():
        engine = with_leaf(engine, name, value)
    return engine


@eqx.filter_jit
def _segment(
    engine: AbstractDynamics,
    batch: Batch,
    start: Start | None,
    observe: tuple[tuple[str, Observable], ...],
    neighbors: nl.NeighborList | None,
    impl: Any,
    most: int | None,
    values: dict[str, Shaped[Array, "lanes ..."]],
    keys: Shaped[Array, "lanes ..."],
    given: DynamicsState,
    goes_on: Bool[Array, ""],
    stop: Int[Array, ""],
) -> tuple[dict[str, Shaped[Array, "lanes systems"]], DynamicsState, tuple[Any, Any, Any]]:
    """Steps of all lanes until `stop` are complete: observables, states, and what the host must know: whether
    there is more to do, whether a list was too small, and what it needed."""

    def run(values: dict[str, Shaped[Array, "..."]], key: Shaped[Array, "..."], given: DynamicsState) -> Any:
        mine = _with_values(engine, values)
        first = unsafe_replace(_first(mine, batch, start, neighbors, impl, most, key), key=key)
        state = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), given, first)
        state = with_keys(state, impl)
        budget: Any = steps_of_budget(mine) if most is None else most
        state = jax.lax.while_loop(
            lambda s: should_continue(mine, s, jnp.minimum(stop, budget)), lambda s: step(mine, s), state
        )
        lists = state.neighbors
        report = (
            should_continue(mine, state, budget),
            jnp.zeros((), bool) if lists is None else lists.overflow,
            jnp.zeros(1, jnp.int32) if lists is None else lists.needs,
        )
        return {name: f(state.batch) for name, f in observe}, unsafe_replace(state, key=key), report

    if len(keys) > 1:
        return jax.vmap(run)(values, keys, given)
    # What is mapped over one lane is slower.
    alone = run(*jax.tree.map(lambda x: x[0], (values, keys, given)))
    return jax.tree.map(lambda x: x[None], alone)


__all__ = ["REFERENCES", "Group", "Lanes", "take_lanes", "with_keys"]
