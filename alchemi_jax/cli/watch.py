"""Between compiled segments: the progress bar, signals, and systems that are finished."""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from alchemi_jax.cli.settings import MD, Pipeline
from alchemi_jax.cli.signals import Signals
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.systems.host import HostBatch


#: Seconds between looks.
_LOOK = 0.3
#: The bar is drawn so often, seconds; in a file, where each one is a line, less often.
_DRAW, _DRAW_IN_FILE = 0.2, 30.0


class Watch:
    """A host hook that looks at the batch about every third of a second.

    Its frequency follows the speed of the run. The compiled code is the same with and without it.

    Args:
        settings: of the run.
        systems, done: number of systems of the run, and of those that an earlier call has finished.
        signals: looked at each time.
        take: called with the batch and a mask of its finished systems, each time that there are new ones.
    """

    stage = DynamicsStage.AFTER_STEP

    def __init__(
        self,
        settings: Pipeline,
        systems: int,
        done: int,
        signals: Signals,
        take: Callable[[HostBatch, np.ndarray], Any] | None = None,
    ):
        self.frequency = 1
        self.signals, self.take = signals, take
        #: The batch as it was looked at last.
        self.last: HostBatch | None = None
        #: Steps of dynamics of each stage; None for one that relaxes.
        self.steps = [stage.n_steps if isinstance(stage, MD) else None for stage in settings.stages]
        self.per_system = sum(filter(None, self.steps))
        self.systems, self.finished = systems, done
        self._seen: set[int] = set()
        self._looked: tuple[int, float] | None = None
        unit, total = ("step", self.per_system * systems) if self.per_system else ("structure", systems)
        left = "{remaining} left" if self.per_system else "{elapsed}"
        shape = "{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} " + unit + "s, " + left + "{postfix}"
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            initial=done * (self.per_system or 1),
            dynamic_ncols=True,
            bar_format=shape,
            mininterval=_DRAW if on_terminal else _DRAW_IN_FILE,
            smoothing=0.1,
        )
        self.bar.set_postfix_str("compiling", refresh=on_terminal)

    def __call__(self, ctx: Any, stage: Any) -> None:
        self.signals.attend()
        host: HostBatch = ctx.batch
        self.last = host
        self._adapt(int(ctx.step_count))
        done = host.status >= ctx.workflow.exit_status
        new = done & ~np.isin(host.system_id, list(self._seen))
        if new.any():
            self.count(host.system_id[new])
            if self.take is not None:
                with self.signals.files:
                    self.take(host, new)
        self._draw(host, done)
        self.signals.check()

    def count(self, system_ids: np.ndarray) -> None:
        """These systems are finished; also those that leave before they were seen here."""
        new = set(system_ids.tolist()) - self._seen
        self._seen |= new
        self.finished += len(new)

    def _adapt(self, step: int) -> None:
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
        self.bar.set_postfix_str("", refresh=False)
        self.bar.close()
