"""SnapshotHook and ConvergedSnapshotHook: systems go to a sink."""

import os
from typing import Any

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext
from alchemi_jax.io.sinks.base import Sink


class SnapshotHook:
    """Writes all systems of the batch. Host, at AFTER_STEP.

    As a hook of one stage of a pipeline: the systems that are in that stage.

    Args:
        sink: where to.
        frequency: every so many steps.
        finished: whether systems that are finished go on being written, so that frames are of all systems.
    """

    def __init__(self, sink: Sink, frequency: int = 1, finished: bool = True):
        if not all(callable(getattr(sink, name, None)) for name in ("write", "open", "close")):
            shown = repr(str(sink)) if isinstance(sink, str | os.PathLike) else "..."
            raise TypeError(
                f"sink of {type(self).__name__} must be a sink, such as ZarrData({shown}), not a "
                f"{type(sink).__name__}."
            )
        self.sink = sink
        self.frequency = frequency
        self.finished = finished
        self.stage = DynamicsStage.AFTER_STEP

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        everyone = self.finished and ctx.stages is None
        self.sink.write(ctx.batch, None if everyone else ctx.active_mask)

    def __enter__(self) -> "SnapshotHook":
        self.sink.open()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.sink.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sink!r}, frequency={self.frequency})"


class ConvergedSnapshotHook(SnapshotHook):
    """Writes each system once when it converges, with its state at that moment. Host, at ON_CONVERGE.

    Args:
        sink: where to.
        frequency: look only in every so-many-th step; what converges in others is not written.
    """

    follows_systems = True

    def __init__(self, sink: Sink, frequency: int = 1):
        super().__init__(sink, frequency)
        self.stage = DynamicsStage.ON_CONVERGE

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        self.sink.write(ctx.batch, ctx.converged_mask)
