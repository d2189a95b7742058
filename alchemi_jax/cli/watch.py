"""Between compiled segments: the progress bar, and what a run has done."""

import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from alchemi_jax.cli.settings import MD, Pipeline
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.systems.host import HostBatch


#: Seconds between looks.
_LOOK = 0.3
#: The bar is drawn so often, seconds; in a file, where each one is a line, less often.
_DRAW, _DRAW_IN_FILE = 0.2, 30.0


class PacedWatch:
    """A host hook with a progress bar, which is called about every third of a second: its frequency follows
    the speed of the run. The compiled code is the same with and without it.

    Args:
        total: at which the bar is full. shape: of the bar, behind its percentage and picture.
        shown: whether there is a bar.
    """

    def __init__(self, total: int, shape: str, shown: bool = True):
        self.frequency = 1
        self._looked: tuple[int, float] | None = None
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            disable=not shown,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} " + shape + "{postfix}",
            mininterval=_DRAW if on_terminal else _DRAW_IN_FILE,
            smoothing=0.1,
        )
        self.bar.set_postfix_str("compiling", refresh=on_terminal)

    def adapt(self, step: int) -> None:
        """Choose the frequency so that looks are `_LOOK` seconds apart."""
        now = time.perf_counter()
        if self._looked is None:
            # The time so far was compiling, which says nothing about the time that is left.
            self.bar.start_t = self.bar.last_print_t = time.time()
        elif step > self._looked[0]:
            each = (now - self._looked[1]) / (step - self._looked[0])
            wanted = int(_LOOK / max(each, 1e-9))
            self.frequency = int(np.clip(wanted, 1, 10 * self.frequency))
        self._looked = step, now

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.set_postfix_str("", refresh=False)
        self.bar.close()


class Watch(PacedWatch):
    """Looks at the batch and counts the systems that are finished.

    Args:
        settings: of the run.
        systems: number of systems of the run.
        shown: whether there is a bar.
    """

    stage = DynamicsStage.AFTER_STEP
    #: On several devices it sees the systems of one at a time.
    follows_systems = True

    def __init__(self, settings: Pipeline, systems: int, shown: bool = True):
        #: Steps of dynamics of each stage; None for one that relaxes.
        self.steps = [stage.n_steps if isinstance(stage, MD) else None for stage in settings.stages]
        self.per_system = sum(filter(None, self.steps))
        self.systems, self.finished = systems, 0
        self._seen: set[int] = set()
        #: Steps of systems before this call, by id; those that are not named were not begun.
        self._before: dict[int, int] = {}
        unit, total = ("step", self.per_system * systems) if self.per_system else ("structure", systems)
        super().__init__(
            total, f"{unit}s, " + ("{remaining} left" if self.per_system else "{elapsed}"), shown
        )

    def begin(self, host: HostBatch | None, done: np.ndarray) -> None:
        """The run goes on from these finished systems, of which a mask says which stay as they are."""
        if host is None:
            return
        self._note_steps(host)
        self.count(host.system_id[done])
        self.bar.initial = self.bar.n = self.finished * (self.per_system or 1)

    def __call__(self, ctx: Any, stage: Any) -> None:
        host: HostBatch = ctx.batch
        if self._looked is None:
            self._note_steps(host, 1)
        self.adapt(int(ctx.step_count))
        done = host.status >= ctx.workflow.exit_status
        self.count(host.system_id[done])
        self._draw(host, done)

    def count(self, system_ids: np.ndarray) -> None:
        """These systems are finished; also those that leave before they were seen here."""
        new = set(system_ids.tolist()) - self._seen
        self._seen |= new
        self.finished += len(new)

    def show_finished(self, where: str) -> None:
        """Show how many systems are finished, of a run whose steps are taken elsewhere."""
        if self._looked is None:
            self._looked = 0, time.perf_counter()
            self.bar.start_t = self.bar.last_print_t = time.time()
        self.bar.set_postfix_str(f"{self.finished} of {self.systems} structures done {where}", refresh=False)
        self.bar.update(self.finished * (self.per_system or 1) - self.bar.n)

    def _note_steps(self, host: HostBatch, less: int = 0) -> None:
        steps = np.maximum(host.steps_taken - less, 0)
        self._before.update(zip(host.system_id.tolist(), steps.tolist(), strict=True))

    def atom_steps(self, host: HostBatch) -> float:
        """Steps that this call took of these systems, times their atoms."""
        before = np.array([self._before.get(i, 0) for i in host.system_id.tolist()])
        taken = np.maximum(host.steps_taken.astype(np.int64) - before, 0)
        return float((taken * host.atoms_per_system).sum())

    def _draw(self, host: HostBatch, done: np.ndarray) -> None:
        if not self.per_system:
            left = ~done[host.batch_idx] & ~host.fixed
            worst = np.max(np.linalg.norm(host.forces[left], axis=1), initial=0.0)
            self.bar.set_postfix_str(f"largest force {worst:.4f} eV/Å", refresh=False)
            self.bar.update(self.finished - self.bar.n)
            return
        before = np.cumsum([0, *(n or 0 for n in self.steps)])
        moving = np.array([n is not None for n in self.steps] + [False])
        code = np.minimum(host.status, len(self.steps))[~done]
        taken = before[code] + np.where(moving[code], host.stage_steps[~done], 0)
        n = int(taken.sum()) + self.finished * self.per_system
        self.bar.set_postfix_str(f"{self.finished} of {self.systems} structures done", refresh=False)
        self.bar.update(n - self.bar.n)

    def close(self) -> None:
        """Show all that is finished, and leave the bar as it is."""
        self.bar.n = max(self.bar.n, self.finished * (self.per_system or 1))
        super().close()
