"""Groups of hooks: the hooks of a workflow, and in a pipeline the hooks of each part."""

from collections.abc import Iterable
from enum import Enum
from typing import Any, NamedTuple

from alchemi_jax.hooks.set import HookSet


class Group(NamedTuple):
    """Hooks that see the systems of some parts of a pipeline.

    `codes` are the numbers of these parts; None: all parts. `memory` is the index of the memory of the first
    traced hook in the tuple of all memories, `records` that of the first buffer in the tuple of all buffers.
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
    """Groups with their indices in the tuples of memories and buffers, the outermost first."""
    groups, memory, records = [], 0, 0
    for codes, hooks in sets:
        groups.append(Group(codes, hooks, memory, records))
        memory += len(hooks.traced)
        records += len(hooks.recording)
    return tuple(groups)


def in_order(groups: tuple[Group, ...], stage: Enum) -> tuple[Group, ...]:
    """The groups in the order in which they are called.

    Hooks of a pipeline come before those of its parts at BEFORE_* stages, and after them at other stages.
    """
    if len(groups) == 1 or stage.name.startswith("BEFORE_"):
        return groups

    def width(group: Group) -> float:
        return float("inf") if group.codes is None else float(len(group.codes))

    return tuple(sorted(groups, key=width))


__all__ = ["Group", "in_order", "make_groups"]
