"""A sweep over several devices: each takes the next group of combinations as it has finished one."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from alchemi_jax.dynamics.devices.devices import default_device
from alchemi_jax.dynamics.devices.gather import on_device
from alchemi_jax.dynamics.devices.team import Deposit, PartSaver, Team
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.lanes import Group, Lanes
from alchemi_jax.dynamics.saved_sweep import Progress, SweepSaver
from alchemi_jax.errors import name_of


class SweepOverDevices:
    """Runs groups that an earlier call has not finished.

    Args:
        saver: of the sweep, which is open. groups: all of them. finish: called with the progress, the number
            of a group and the group when it is done.
    """

    def __init__(
        self,
        saver: SweepSaver,
        progress: Progress,
        groups: Sequence[Group],
        devices: tuple[Any, ...],
        finish: Callable[[Progress, int, Group], None],
    ):
        self.saver, self.progress, self.groups, self.finish = saver, progress, groups, finish
        left = [n for n in range(len(groups)) if n not in progress.columns]
        default = default_device()
        chosen = [None if d == default else d for d in devices[: len(left)]]
        self.team = Team(chosen, saver.saver, together=False)
        self.team.write = self._save
        self._next, self._lock = iter(left), threading.Lock()
        #: The group of each part that has begun, and steps of those that it has finished.
        self._begun: dict[int, tuple[int, Group]] = {}
        self._steps = [0] * len(chosen)

    def run(self) -> None:
        """All of them.

        Raises:
            Interrupted: if the sweep was told to stop; it is saved then.
        """
        self.team.run([functools.partial(self._work, part) for part in range(len(self.team.devices))])
        if self.team.stopping:
            raise Interrupted(f"the sweep of {name_of(self.saver.engine)} was told to stop; it is saved")

    def _save(self, deposits: list[Deposit]) -> None:
        self.saver.save(self.progress, dict(self._begun.values()))

    def _work(self, part: int, saver: PartSaver) -> None:
        given, device = self.saver.runner, self.team.devices[part]
        runner = Lanes(
            on_device(given.engine, device),
            on_device(given.batch, device),
            given.start,
            given.observe,
            on_device(given.neighbors, device),
            given.impl,
            given.most,
        )
        for number in iter(self._take, None):
            group = self.groups[number]
            if number in self.progress.unfinished:
                group.states, group.columns = on_device(self.progress.unfinished.pop(number), device)
            with self._lock:
                self._begun[part] = number, group
            runner.run(group, lambda group: self._before_segment(part, saver, group))
            with self._lock:
                del self._begun[part]
                self._steps[part] += group.step
                self.finish(self.progress, number, group)

    def _take(self) -> int | None:
        with self._lock:
            return next(self._next, None)

    def _before_segment(self, part: int, saver: PartSaver, group: Group) -> int | None:
        saver.should_stop()
        before = self._steps[part]
        if saver.is_due(before + group.step):
            saver.save([], {})
        latest = saver.next_step(before + group.step)
        return None if latest is None else max(latest - before, group.step + 1)


__all__ = ["SweepOverDevices"]
