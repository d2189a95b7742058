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
    """Writes all systems of the batch. Host, at AFTER_STEP by default.

    As a hook of one stage of a pipeline: the systems that are in that stage. With frequency f the frames are
    of the states after 1, f + 1, 2f + 1, ... steps of each system, also where systems enter a batch at
    different times: then not all are in each frame. With `stage=DynamicsStage.BEFORE_STEP, final=True` they
    are of 0, f, 2f, ... and all steps, as in ASE.

    Args:
        sink: where to.
        frequency: every so many steps.
        finished: whether systems that are finished, and still in the batch, go on being written, so that
            frames are of all systems. With False the frames of a system do not depend on other systems.
        stage: where.
        final: whether `run` also writes the state that it ends with, of all systems, unless it was written.

    Raises:
        TypeError: saying what to write, if the sink is none.
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
        """Frames without those that are finished do not depend on who else is in the batch."""
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
        """Write the systems whose last state was not written."""
        batch = ctx.batch
        new = self._shown.is_new(batch.system_id, batch.steps_taken)
        if new.any():
            self.sink.write(batch, new)
            # The same call again, of a run that has ended, writes nothing.
            self._shown.note(batch.system_id[new], batch.steps_taken[new])
        self._shown.note_ended(batch.system_id, batch.steps_taken)

    def state(self) -> dict[str, Any]:
        """How far the sink is, and the last step of each system that was written."""
        return {"sink": self.sink.state(), "shown": self._shown.state()}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go back to the point of a state; what the sink raises."""
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
        sink: where to.
        frequency: look only in every so-many-th step of each system; who converges in others is not written.
    """

    def __init__(self, sink: Sink, frequency: int = 1):
        super().__init__(sink, frequency, finished=False)
        self.stage = DynamicsStage.ON_CONVERGE

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        self.sink.write(ctx.batch, ctx.converged_mask)


__all__ = ["ConvergedSnapshotHook", "SnapshotHook", "check_sink"]
