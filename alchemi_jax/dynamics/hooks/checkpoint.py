"""CheckpointHook: when and where a run is saved."""

import os
from collections.abc import Callable
from enum import Enum
from typing import Any

from alchemi_jax.errors import UserCodeError, name_of
from alchemi_jax.parameters import as_path, function, natural, number, optional


_NEVER = 2**31 - 1


class CheckpointHook:
    """Saves the whole run at intervals, so that another process can continue it. Host, between steps.

        engine = NVTLangevin(..., hooks=[CheckpointHook("checkpoints", every_seconds=60)])
        engine.run(batch, resume="checkpoints")

    `run(..., resume=folder)` continues from the newest checkpoint, bit for bit. A checkpoint has the state,
    the memories of traced hooks, the `state()` of other hooks, the systems of a sampler that are in flight,
    and how far each sink and log was written. It is made between two steps, when all rows are written and all
    hooks were called. The run waits only for a copy of the arrays (about 30 ms for a few thousand atoms).
    orbax writes it in the background; a checkpoint is complete or does not exist.

    `run` also saves at its end. `loop`, `rollout` and transforms do not call host hooks.

    Args:
        folder: for the checkpoints of one run.
        frequency: number of steps of the batch from one checkpoint to the next; None: by time alone.
        every_seconds: time from one checkpoint to the next, s; None: by steps alone.
        keep: number of checkpoints that are kept, the newest ones.
        should_stop: a function that is called between steps, about four times a second. If it returns true,
            the run is saved and ends with `Interrupted`, a KeyboardInterrupt that has the state reached.

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
