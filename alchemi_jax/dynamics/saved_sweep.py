"""A sweep that is saved between two segments, and goes on from there.

A checkpoint has the table of the groups that are finished, the states of the group that is not, and what the
sweep was asked for, so that another sweep is told. Of lists it has the references, like other checkpoints.
"""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from alchemi_jax.dynamics.checkpoints import Checkpoint
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.lanes import REFERENCES, Group, Lanes
from alchemi_jax.dynamics.saved import AnotherRun, join_tree
from alchemi_jax.dynamics.saver import Saver, make_saver
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of
from alchemi_jax.neighbors import ListSizes, resized
from alchemi_jax.systems.levels import unsafe_replace


#: name -> its values in all finished combinations.
Columns = dict[str, np.ndarray]


@dataclasses.dataclass
class Progress:
    """How far a sweep is.

    Attributes:
        columns: of each group that is finished its part of the table. `states`: theirs, if the sweep returns
        them. `steps`: that they took together.
        unfinished: of each group that has begun the states, and its observables.
        complete: whether all is done.
    """

    steps: int = 0
    columns: dict[int, Columns] = dataclasses.field(default_factory=dict)
    states: dict[int, DynamicsState] = dataclasses.field(default_factory=dict)
    unfinished: dict[int, tuple[DynamicsState, dict[str, Any]]] = dataclasses.field(default_factory=dict)
    complete: bool = False


class SweepSaver:
    """Saves a sweep where its CheckpointHook or `resume` says so; does nothing where there is neither.

    Args:
        engine: with its hooks. resume: the folder, or None.
        runner: of the groups. asked: what the sweep was called with, a tree for JSON and arrays.
    """

    def __init__(
        self,
        engine: AbstractDynamics,
        resume: str | os.PathLike | None,
        runner: Lanes,
        asked: dict[str, Any],
    ):
        self.engine, self.runner, self.asked = engine, runner, asked
        self.resume = resume is not None
        self.saver: Saver | None = make_saver(engine, resume, "sweep")

    @contextmanager
    def opened(self, first: Group) -> Iterator[Progress]:
        """A context in which the folder is open. Gives how far an earlier call came.

        Args:
            first: the first group, for the shapes of states.

        Raises:
            AnotherRun: naming what differs, if there are checkpoints of another sweep.
        """
        if self.saver is None:
            yield Progress()
            return
        with self.saver.opened(self.resume, look=lambda found: self._look(found, first)) as progress:
            yield progress or Progress()

    def before_segment(self, progress: Progress, number: int, group: Group) -> int | None:
        """Save the sweep if it is due. The number of steps of the group at which the segment must end.

        Raises:
            Interrupted: if the hook says that the sweep is to end; it is saved then.
        """
        if self.saver is None:
            return None
        step = progress.steps + group.step
        stops = self.saver.should_stop()
        if stops or self.saver.is_due(step):
            self.save(progress, {number: group})
        if stops:
            raise Interrupted(f"the sweep of {name_of(self.engine)} was told to stop; it is saved")
        latest = self.saver.next_step(step)
        return None if latest is None else latest - progress.steps

    def save(self, progress: Progress, groups: dict[int, Group], ended: bool = False) -> None:
        """Save the sweep, with the groups that have begun, by their numbers."""
        if self.saver is None or progress.complete:
            return
        lists = self.runner.neighbors
        begun = {number: group for number, group in groups.items() if group.states is not None}
        finished = sorted(progress.columns)
        rest = {
            "asked": self.asked,
            "sizes": None if lists is None else dataclasses.asdict(lists.sizes),
            "finished": finished,
            "steps": progress.steps,
            "columns": [progress.columns[number] for number in finished],
            "states": [_pack(progress.states[number], None) for number in finished if progress.states],
            "unfinished": [
                {
                    "group": number,
                    "states": _pack(group.states, group.goes_on),
                    "observed": jax.device_get(group.columns),
                }
                for number, group in begun.items()
            ],
        }
        step = progress.steps + sum(group.step for group in begun.values())
        self.saver.save([], rest, ended, step)

    def _look(self, found: Checkpoint, first: Group) -> Progress:
        """How far a checkpoint is."""
        rest = join_tree(found.about["rest"], found.arrays)
        where = str(found.path)
        check_asked(where, rest["asked"], self.asked)
        if rest["sizes"] is not None and self.runner.neighbors is not None:
            self.runner.neighbors = resized(self.runner.neighbors, ListSizes(**rest["sizes"]))
        if "finished" not in rest:
            raise AnotherRun(f"{where} was written by another version of alchemi_jax.")
        finished = rest["finished"]
        states = [self._unpack(where, packed, first) for packed in rest["states"]]
        return Progress(
            steps=rest["steps"],
            columns=dict(zip(finished, rest["columns"], strict=True)),
            states=dict(zip(finished, states, strict=True)) if states else {},
            unfinished={
                one["group"]: (self._unpack(where, one["states"], first), one["observed"])
                for one in rest["unfinished"]
            },
            complete=found.about["ended"],
        )

    def _unpack(self, where: str, packed: dict[str, Any], group: Group) -> DynamicsState:
        """States from what `_pack` made of them."""
        like = unsafe_replace(self.runner.empty_states(group), neighbors=None)
        leaves, tree = jax.tree.flatten(like)
        found = packed["leaves"]
        odd = len(found) != len(leaves) or any(
            x.shape != y.shape or x.dtype != y.dtype for x, y in zip(found, leaves, strict=True)
        )
        if odd:
            raise AnotherRun(f"{where} is of another engine, batch or hooks: its states have other shapes.")
        states = jax.tree.unflatten(tree, jax.device_put(found))
        if packed["references"] is None:
            return states
        return unsafe_replace(states, neighbors=self.runner.lists_of(packed["references"]))


def _pack(states: Any, goes_on: Bool[np.ndarray, " lanes"] | None) -> dict[str, Any]:
    """The leaves of states, and the references of their lists.

    Args:
        goes_on: the lanes that take further steps: their lists are built once more, which does not count.
    """
    lists = states.neighbors
    slim = jax.device_get(jax.tree.leaves(unsafe_replace(states, neighbors=None)))
    references = None
    if lists is not None:
        references = jax.device_get({name: getattr(lists, name) for name in REFERENCES})
        if goes_on is not None:
            again = np.asarray(lists.built) & goes_on
            references["builds"] = references["builds"] - again.astype(np.int32)
    return {"leaves": [np.asarray(x) for x in slim], "references": references}


def check_asked(where: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a checkpoint is of the same sweep.

    Raises:
        AnotherRun: naming what differs.
    """
    old, new = dict(_flat("", stored)), dict(_flat("", now))
    for name in [*old, *new]:
        if name not in old or name not in new or not _same(old[name], new[name]):
            raise AnotherRun(
                f"{where} is of another sweep: they differ in {name}. Give the same, or another folder."
            )


def _flat(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Names and leaves of a tree of dictionaries."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(f"{name}, {key}" if name else key, value)
    else:
        yield name, tree


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    floats = a.dtype.kind == b.dtype.kind == "f"
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=floats)


__all__ = ["Progress", "SweepSaver", "check_asked"]
