"""Groups of hooks: those of the engine, and in a pipeline those of each of its stages."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.state import StepCarry
from alchemi_jax.hooks import HookSet


class Group(NamedTuple):
    """Hooks that look at the systems of some stages of a pipeline.

    `codes` are the stages, None: all. The group's traced hooks have their memory from place `memory` of
    `state.memory` on, its recording hooks their rows from place `records` of `state.records` on.
    """

    codes: tuple[int, ...] | None
    hooks: HookSet
    memory: int
    records: int

    def memories(self, of: tuple) -> tuple:
        """The part of `state.memory` that belongs to the group."""
        return of[self.memory : self.memory + len(self.hooks.traced)]

    def mine(self, flow: StepCarry) -> Bool[Array, " systems"]:
        """The systems that this step moves and that began it in one of the group's stages."""
        return self.within(flow.active, flow.start.status)

    def within(self, mask: Array, status: Array) -> Bool[Array, " systems"]:
        """Those of the mask whose status is one of the group's stages."""
        if self.codes is None:
            return mask
        return mask & jnp.any(jnp.stack([status == code for code in self.codes]), axis=0)

    def called(self, flow: StepCarry, stage: DynamicsStage) -> Array | None:
        """Whether the group is called: in its stages only while a system is there, at ON_CONVERGE only
        when one of them converged. None: always."""
        if stage is DynamicsStage.ON_CONVERGE:
            return jnp.any(self.within(flow.state.newly_converged, flow.start.status))
        return None if self.codes is None else jnp.any(self.mine(flow))


def make_groups(sets: Iterable[tuple[tuple[int, ...] | None, HookSet]]) -> tuple[Group, ...]:
    """Groups with their places, the outermost first."""
    groups, memory, records = [], 0, 0
    for codes, hooks in sets:
        groups.append(Group(codes, hooks, memory, records))
        memory += len(hooks.traced)
        records += len(hooks.recording)
    return tuple(groups)


def in_order(groups: tuple[Group, ...], stage: Enum) -> tuple[Group, ...]:
    """The order in which groups are called: a sum's hooks bracket those of its stages, first at
    BEFORE_*, last elsewhere."""
    if len(groups) == 1 or stage.name.startswith("BEFORE_"):
        return groups

    def width(group: Group) -> float:
        return float("inf") if group.codes is None else float(len(group.codes))

    return tuple(sorted(groups, key=width))
