"""Host hooks of a run over several devices: one call with one HostBatch, once all devices have come so far.

Each driver calls what stands in for the hook; that waits here. Drivers go on for a few calls before the hook
was called. Where a hook is due on some of the devices only (a system converged there, or its own steps say
so), it is called with the systems of these and of those that have ended.
"""

import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from alchemi_jax.dynamics.devices.gather import Rows
from alchemi_jax.dynamics.devices.team import Team
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext
from alchemi_jax.hooks.groups import in_order
from alchemi_jax.hooks.set import call_host
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace


#: So many calls a driver may be ahead of the hooks.
_AHEAD = 4
#: Step, stage, group in the order of this stage, hook in the group: calls are in this order.
_Key = tuple[int, ...]


class _Call(NamedTuple):
    key: _Key
    hook: Any
    ctx: HookContext
    stage: DynamicsStage


class HostCalls:
    """Calls that wait until all parts have come so far.

    Args:
        engine: with the hooks themselves. rows: of the systems of each part. team: for its lock.
    """

    def __init__(self, engine: Engine, rows: Sequence[Rows], team: Team):
        self.engine, self.rows, self.team = engine, rows, team
        self._queues = [deque[_Call]() for _ in rows]
        self._passed: list[_Key] = [(-1,)] * len(rows)
        #: The systems of parts that have ended, and after how many steps.
        self._ended: dict[int, tuple[int, HostBatch]] = {}
        groups = engine.groups
        #: For each stage the numbers of the groups in the order in which they are called.
        numbers = {id(group): number for number, group in enumerate(groups)}
        self._order = {s: [numbers[id(g)] for g in in_order(groups, s)] for s in DynamicsStage}

    def deposit(self, part: int, where: tuple[int, int], hook: Any, ctx: HookContext, stage: Any) -> None:
        """A hook is due on a device. Called by its driver; waits where it is too far ahead."""
        group, number = where
        order = self._order[stage].index(group)
        key = (int(ctx.step_count), list(DynamicsStage).index(stage), order, number)
        team = self.team
        with team.changed:
            team.check()
            self._queues[part].append(_Call(key, hook, ctx, stage))
            self._passed[part] = key
            team.changed.notify_all()
            team.wait_while(lambda: len(self._queues[part]) > _AHEAD)

    def mark(self, part: int, step: int) -> None:
        """The part has called all hooks of the steps before this one."""
        self._passed[part] = max(self._passed[part], (step, -1))

    def end(self, part: int, step: int, host: HostBatch) -> None:
        """The part has ended after so many steps, with these systems."""
        self._ended[part] = step, host

    def next_call(self, running: set[int]) -> Callable[[], None] | None:
        """The next call for which all parts have come so far."""
        heads = [queue[0].key for queue in self._queues if queue]
        if not heads:
            return None
        key = min(heads)
        if any(not self._queues[k] and self._passed[k] < key for k in running):
            return None
        mine = {k: queue.popleft() for k, queue in enumerate(self._queues) if queue and queue[0].key == key}
        return functools.partial(self._call, mine)

    def _call(self, mine: dict[int, _Call]) -> None:
        first = next(iter(mine.values()))
        ctx = unsafe_replace(first.ctx, workflow=self.engine, model=self.engine.model)
        if isinstance(first.ctx.batch, HostBatch):
            ctx = self._merged(ctx, mine)
        call_host(first.hook, ctx, first.stage, first.key[0])

    def _merged(self, ctx: HookContext, mine: dict[int, _Call]) -> HookContext:
        hosts: list[Any] = [call.ctx.batch for call in mine.values()]
        masks = [(call.ctx.active_mask, call.ctx.converged_mask) for call in mine.values()]
        rows = [self.rows[k] for k in mine]
        call = next(iter(mine.values()))
        completed = call.key[0] + (call.stage in (DynamicsStage.AFTER_STEP, DynamicsStage.ON_CONVERGE))
        for k, (steps, host) in self._ended.items():
            # One that has ended later was on its way, and not due.
            if k not in mine and steps <= completed:
                hosts.append(host)
                rows.append(self.rows[k])
                masks.append((np.zeros(len(host), bool), np.zeros(len(host), bool)))
        order = np.argsort(np.concatenate(rows), kind="stable")

        def join(parts: list[Any]) -> Any:
            return None if parts[0] is None else np.concatenate(parts)[order]

        return unsafe_replace(
            ctx,
            batch=HostBatch.concatenate(hosts).take(order),
            active_mask=join([active for active, _ in masks]),
            converged_mask=join([converged for _, converged in masks]),
        )


__all__ = ["HostCalls"]
