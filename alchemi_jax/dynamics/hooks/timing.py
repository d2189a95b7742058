"""StageTimingHook and ProfilerHook: where the time of a step goes.

Inside one compiled program the stages cannot be timed. A step in which one of these hooks is due is therefore
run stage by stage: each part is a program of its own, and the host waits for it. Such a step is slower than a
whole one.
"""

import itertools
import os
import time
from enum import Enum
from typing import Any

import jax
import numpy as np

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext
from alchemi_jax.parameters import as_path


try:
    import nvtx  # pyright: ignore
except ImportError:
    nvtx = None

#: Stages of a training at which a measurement ends, if one does: the compiled step is one interval.
_LAST = ("AFTER_STEP", "AFTER_BATCH")
_FIRST = ("BEFORE_STEP", "BEFORE_BATCH")
_STAGES = tuple(stage for stage in DynamicsStage if stage is not DynamicsStage.ON_CONVERGE)


class StageTimingHook:
    """Measures the time from each stage of a step to the next.

    Host, at all stages but ON_CONVERGE. `times` has an array for each stage: the time to the next one, s. The
    first measured step compiles the parts and is left out. `print(hook.summary())` prints a table of medians.
    In a training the stages are BEFORE_BATCH and AFTER_BATCH: the compiled step is one interval, which ends
    when its loss is there.

    Args:
        frequency: number of steps from one measured step to the next.
    """

    #: It needs the clock only, so nothing is fetched from the device for it.
    reads_batch = False
    one_device = True

    def __init__(self, frequency: int = 1):
        self.stage: DynamicsStage | None = None
        self.frequency = frequency
        self.reset()

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in _STAGES or stage.name in ("BEFORE_BATCH", "AFTER_BATCH")

    def __call__(self, ctx: HookContext, stage: Enum) -> None:
        if not isinstance(stage, DynamicsStage):
            jax.block_until_ready(ctx.loss)
        now = time.perf_counter()
        if stage.name in _FIRST:
            self._step = {}
        else:
            self._step[self._last] = now - self._then
        if stage.name in _LAST:
            if self._warm:
                self._steps.append(self._step)
            self._warm = True
        self._last = stage
        # The time of the hook itself is in no interval.
        self._then = time.perf_counter()

    def reset(self) -> None:
        """Drops all measurements; the next measured step counts as the first."""
        self._steps: list[dict[Enum, float]] = []
        self._step: dict[Enum, float] = {}
        self._warm = False
        self._last: Enum = DynamicsStage.BEFORE_STEP
        self._then = 0.0

    @property
    def times(self) -> dict[Enum, np.ndarray]:
        """Time from each stage to the next, s, [steps]."""
        stages = dict.fromkeys(s for step in self._steps for s in step) or _STAGES[:-1]
        return {s: np.array([step[s] for step in self._steps if s in step]) for s in stages}

    def summary(self) -> str:
        """A table of the medians, ms, and of their shares of a step."""
        if not self._steps:
            return "StageTimingHook: fewer than two steps were measured."
        lines, times = [], self.times
        # A table for each workflow that it was in.
        for kind in dict.fromkeys(type(stage) for stage in times):
            medians = {s: 1e3 * float(np.median(t)) for s, t in times.items() if isinstance(s, kind)}
            total, n = sum(medians.values()), len(times[next(iter(medians))])
            lines.append(f"{'from':22}{'to':22}{'ms':>9}{'share':>8}   ({n} steps, stage by stage)")
            last = next(s for s in kind if s.name in _LAST)
            for stage, following in itertools.pairwise([*medians, last]):
                ms = medians[stage]
                lines.append(f"{stage.name:22}{following.name:22}{ms:9.3f}{ms / total:8.1%}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"StageTimingHook(frequency={self.frequency})"


class ProfilerHook:
    """Writes a trace for Perfetto (ui.perfetto.dev) and TensorBoard.

    Host, at all stages but ON_CONVERGE. The trace covers the whole run. Steps in which the hook is due are
    run stage by stage, and each stage is a named range (and an NVTX range if `nvtx` is installed). The other
    steps run as one compiled program. In a training a named range is a whole step.

    Args:
        folder: for the trace, which JAX writes into `plugins/profile/TIME/` there.
        frequency: number of steps from one step with named stages to the next.
    """

    reads_batch = False

    def __init__(self, folder: str | os.PathLike, frequency: int = 10):
        self.stage: DynamicsStage | None = None
        self.frequency = frequency
        self.folder = as_path("folder of ProfilerHook")(folder)
        self._range: Any = None

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in _STAGES or stage.name in ("BEFORE_BATCH", "AFTER_BATCH")

    def __call__(self, ctx: HookContext, stage: Enum) -> None:
        self._leave()
        if stage.name not in _LAST:
            self._range = jax.profiler.TraceAnnotation(stage.name, step=ctx.step_count)
            self._range.__enter__()
            if nvtx is not None:
                nvtx.push_range(stage.name)

    def _leave(self) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
            if nvtx is not None:
                nvtx.pop_range()

    def __enter__(self) -> "ProfilerHook":
        jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._leave()
        jax.profiler.stop_trace()

    def __repr__(self) -> str:
        return f"ProfilerHook({str(self.folder)!r}, frequency={self.frequency})"


__all__ = ["ProfilerHook", "StageTimingHook"]
