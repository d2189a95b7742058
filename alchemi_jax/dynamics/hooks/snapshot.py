"""SnapshotHook and ConvergedSnapshotHook: systems go to a sink."""

import os
from typing import Any

import numpy as np

from alchemi_jax.dynamics.hooks.shown import Shown
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.errors import description
from alchemi_jax.hooks import HookContext
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.parameters import as_flag
from alchemi_jax.systems.outcome import Outcome


_SINKS = {".zarr": "ZarrData", ".xyz": "ExtXYZ", ".extxyz": "ExtXYZ", ".traj": "AseTrajectory"}


def check_sink(who: str, sink: Any) -> Sink:
    """The sink.

    Raises:
        TypeError: saying what to write, for a path or anything else that is no sink.
    """
    if isinstance(sink, Sink):
        return sink
    if isinstance(sink, str | os.PathLike):
        path = os.fspath(sink)
        kind = _SINKS.get(os.path.splitext(path)[1].lower(), "ZarrData")
        raise TypeError(
            f"{who} takes a sink, not a path: write {kind}({path!r}) (alchemi_jax.dynamics.sinks)."
        )
    what = f"the class {sink.__name__}" if isinstance(sink, type) else description(sink)
    raise TypeError(f"{who} takes a sink of alchemi_jax.dynamics.sinks, such as ZarrData(path), not {what}.")


class SnapshotHook:
    """Writes the systems of the batch to a sink, one frame at a time. Host, at AFTER_STEP by default.

    As a hook of one part of a pipeline it writes the systems that are in that part. With frequency f the
    frames show the states after 1, f + 1, 2f + 1, ... steps of each system. If systems enter the batch at
    different times, not every frame has all systems. With `stage=DynamicsStage.BEFORE_STEP, final=True` they
    show the states after 0, f, 2f, ... steps and the last one, as in ASE.

    Args:
        sink: stores the systems, for example `ZarrData("traj.zarr")`.
        frequency: number of steps of a system from one frame to the next.
        finished: whether systems that are finished and still in the batch are written too, so that frames
            have all systems. With False the frames of a system do not depend on other systems.
        stage: stage at which frames are written.
        final: whether `run` also writes the state that it ends with, of all systems, unless it was written.

    Raises:
        TypeError: if `sink` is not a sink; the message shows what to write.
    """

    own_steps = True

    def __init__(
        self,
        sink: Sink,
        frequency: int = 1,
        finished: bool = True,
        stage: DynamicsStage = DynamicsStage.AFTER_STEP,
        final: bool = False,
    ):
        self.sink = check_sink(type(self).__name__, sink)
        self.frequency = frequency
        self.finished = as_flag("finished of SnapshotHook")(finished)
        self.stage = stage
        self.final = as_flag("final")(final)
        self._shown = Shown()

    @property
    def follows_systems(self) -> bool:
        """Whether frames do not depend on the other systems in the batch: they do not if finished systems are
        left out."""
        return not self.finished

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        mask = ctx.active_mask
        if self.finished and ctx.stages is None:
            running = ctx.batch.outcome == Outcome.RUNNING
            mask = None if mask is None or self.frequency == 1 else mask | ~running
        if self.final:
            batch = ctx.batch
            again = self._shown.is_again(batch.system_id, batch.steps_taken)
            mask = (np.ones(len(batch), bool) if mask is None else np.asarray(mask)) & ~again
            self._shown.note(batch.system_id[mask], batch.steps_taken[mask])
        self.sink.write(ctx.batch, mask)

    def call_final(self, ctx: HookContext) -> None:
        """Write the systems whose last state was not written yet."""
        batch = ctx.batch
        new = self._shown.is_new(batch.system_id, batch.steps_taken)
        if new.any():
            self.sink.write(batch, new)
            # The same call again, of a run that has ended, writes nothing.
            self._shown.note(batch.system_id[new], batch.steps_taken[new])
        self._shown.note_ended(batch.system_id, batch.steps_taken)

    def state(self) -> dict[str, Any]:
        """The state of the sink, and the last step of each system that was written; for checkpoints."""
        return {"sink": self.sink.state(), "shown": self._shown.state()}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Remove the frames that were written after a state. Raises what the sink raises."""
        self.sink.set_state(None if state is None else state["sink"])
        self._shown.set_state(None if state is None else state["shown"])

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
        sink: stores the systems.
        frequency: only every `frequency`-th step of each system is checked; a system that converges in
            another step is not written.
    """

    def __init__(self, sink: Sink, frequency: int = 1):
        super().__init__(sink, frequency, finished=False)
        self.stage = DynamicsStage.ON_CONVERGE

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        self.sink.write(ctx.batch, ctx.converged_mask)


__all__ = ["ConvergedSnapshotHook", "SnapshotHook", "check_sink"]
