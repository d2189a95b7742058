"""Groups of hooks: those of a workflow, and in a pipeline those of each of its parts."""

from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

from alchemi_jax.hooks.set import HookSet


class Group(NamedTuple):
    """Hooks that see the systems of some parts of a pipeline.

    `codes` are the numbers of these parts, None: all. The group's traced hooks have their memory from place
    `memory` of the tuple of all memories on, its recording hooks their buffer from place `records` on.
    """

    codes: tuple[int, ...] | None
    hooks: HookSet
    memory: int
    records: int

    def memories(self, of: tuple[Any, ...]) -> tuple[Any, ...]:
        """The part of the tuple of all memories that belongs to the group."""
        return of[self.memory : self.memory + len(self.hooks.traced)]

    def put_memories(self, of: tuple[Any, ...], mine: tuple[Any, ...]) -> tuple[Any, ...]:
        """The tuple of all memories with those of the group changed."""
        return (*of[: self.memory], *mine, *of[self.memory + len(mine) :])


def make_groups(sets: Iterable[tuple[tuple[int, ...] | None, HookSet]]) -> tuple[Group, ...]:
    """Groups with their places, the outermost first."""
    groups, memory, records = [], 0, 0
    for codes, hooks in sets:
        groups.append(Group(codes, hooks, memory, records))
        memory += len(hooks.traced)
        records += len(hooks.recording)
    return tuple(groups)


def in_order(groups: tuple[Group, ...], stage: Enum) -> tuple[Group, ...]:
    """The order in which groups are called: the hooks of a sum bracket those of its parts, first at
    BEFORE_*, last elsewhere."""
    if len(groups) == 1 or stage.name.startswith("BEFORE_"):
        return groups

    def width(group: Group) -> float:
        return float("inf") if group.codes is None else float(len(group.codes))

    return tuple(sorted(groups, key=width))
