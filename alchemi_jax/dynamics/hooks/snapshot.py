"""SnapshotHook and ConvergedSnapshotHook: systems go to a sink."""

import os
from typing import Any

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext
from alchemi_jax.io.sinks.base import Sink


class SnapshotHook:
    """Writes all systems of the batch. Host, at AFTER_STEP by default: states after 1, 1 + f, ... steps.

    As a hook of one stage of a pipeline: the systems that are in that stage. With `stage=BEFORE_STEP` and
    `final=True` frames show the states after 0, f, 2f, ... steps and the last one, as in ASE.

    Args:
        sink: where to.
        frequency: every so many steps, f.
        finished: whether systems that are finished go on being written, so that frames are of all systems.
        stage: where in the step.
        final: whether `run` also writes each system after its last step, at BEFORE_STEP.

    Raises:
        ValueError: for `final` at another stage, which shows the last state by itself, or never.
    """

    def __init__(
        self,
        sink: Sink,
        frequency: int = 1,
        finished: bool = True,
        stage: DynamicsStage = DynamicsStage.AFTER_STEP,
        final: bool = False,
    ):
        if not all(callable(getattr(sink, name, None)) for name in ("write", "open", "close")):
            shown = repr(str(sink)) if isinstance(sink, str | os.PathLike) else "..."
            raise TypeError(
                f"sink of {type(self).__name__} must be a sink, such as ZarrData({shown}), not a "
                f"{type(sink).__name__}."
            )
        self.sink = sink
        self.frequency = frequency
        self.finished = finished
        self.stage = stage
        self.final = check_final(self, final)

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        everyone = self.finished and ctx.stages is None
        self.sink.write(ctx.batch, None if everyone else ctx.active_mask)

    def finish(self, ctx: HookContext) -> None:
        """Write systems that have taken their last step."""
        self.sink.write(ctx.batch, ctx.active_mask)

    def __enter__(self) -> "SnapshotHook":
        self.sink.open()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.sink.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sink!r}, frequency={self.frequency})"


def check_final(hook: Any, final: bool) -> bool:
    """`final`, checked.

    Raises:
        ValueError: if the hook does not run at BEFORE_STEP.
    """
    if final and hook.stage is not DynamicsStage.BEFORE_STEP:
        raise ValueError(
            f"final=True of {type(hook).__name__} goes with stage=DynamicsStage.BEFORE_STEP, not with "
            f"{hook.stage}."
        )
    return bool(final)


class ConvergedSnapshotHook(SnapshotHook):
    """Writes each system once when it converges, with its state at that moment. Host, at ON_CONVERGE.

    Args:
        sink: where to.
        frequency: look only in every so-many-th step; what converges in others is not written.
    """

    follows_systems = True

    def __init__(self, sink: Sink, frequency: int = 1):
        super().__init__(sink, frequency, stage=DynamicsStage.ON_CONVERGE)

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        self.sink.write(ctx.batch, ctx.converged_mask)
