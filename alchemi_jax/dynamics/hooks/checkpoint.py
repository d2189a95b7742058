"""CheckpointHook: when and where a run is saved."""

import os
from collections.abc import Callable
from enum import Enum
from typing import Any

from alchemi_jax.errors import UserCodeError, name_of
from alchemi_jax.parameters import as_path, function, natural, number, optional


_NEVER = 2**31 - 1


class CheckpointHook:
    """Saves the whole run every so often, so that another process goes on from there. Host, between steps.

        engine = NVTLangevin(..., hooks=[CheckpointHook("checkpoints", every_seconds=60)])
        engine.run(batch, resume="checkpoints")

    The driver saves between two steps, where all rows are written and all hooks were called: the state, the
    memories of traced hooks, what other hooks declare as theirs (`state`), who is in flight of a stream of
    systems, and how far each sink and log is written. It waits for a copy of the arrays alone (about 30 ms
    for a few thousand atoms); orbax writes them in the background, and a checkpoint is there completely or
    not at all. `run(..., resume=folder)` goes on from the newest one, bit for bit; see there.

    `run` saves at its end, too. `loop`, `rollout` and transforms do not call hooks of the host.

    Args:
        folder: where the checkpoints go; one run has one folder.
        frequency: every so many steps of the batch; None: by time alone.
        every_seconds: and so many seconds after the last; None: by steps alone.
        keep: number of checkpoints that are kept, the newest ones.
        should_stop: a function that is asked between steps, about four times a second: if it returns true,
            the run is saved and ends with `Interrupted`, a KeyboardInterrupt, which has the state reached.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    follows_systems = True
    reads_batch = False
    stage = None

    def __init__(
        self,
        folder: str | os.PathLike,
        frequency: int | None = None,
        every_seconds: float | int | None = 60.0,
        keep: int = 3,
        should_stop: Callable[[], bool] | None = None,
    ):
        self.folder = as_path("folder of CheckpointHook")(folder)
        self.every = optional(natural("frequency of CheckpointHook"))(frequency)
        self.frequency = _NEVER if self.every is None else self.every
        optional(number("every_seconds of CheckpointHook", zero=True))(every_seconds)
        self.every_seconds = every_seconds
        self.keep = natural("keep of CheckpointHook")(keep)
        self.should_stop = optional(function("should_stop of CheckpointHook"))(should_stop)

    def _runs_on_stage(self, stage: Enum) -> bool:
        # The driver asks this hook between steps.
        return False

    def __call__(self, ctx: Any, stage: Any) -> None:
        raise UserCodeError(f"{name_of(self)} is called by the driver alone, between steps.")

    def __repr__(self) -> str:
        when = [f"frequency={self.every}"] if self.every is not None else []
        when += [f"every_seconds={self.every_seconds:g}"] if self.every_seconds is not None else []
        return f"CheckpointHook({', '.join([repr(str(self.folder)), *when])})"


__all__ = ["CheckpointHook"]
