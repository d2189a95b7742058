"""Hooks around validations: ValidationHook, EarlyStoppingHook, BestCheckpointHook."""

import io
import os
from enum import Enum
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from alchemi_jax.errors import UserCodeError, name_of
from alchemi_jax.hooks.context import HookContext
from alchemi_jax.parameters import as_path, natural, number
from alchemi_jax.training.stage import TrainingStage


_BEGIN_AND_VALIDATIONS = (TrainingStage.BEFORE_TRAINING, TrainingStage.AFTER_VALIDATION)


class ValidationHook:
    """Validates at intervals of steps and at the end, besides `run(validation=)`, which validates after each
    epoch. Host.

    The hooks of AFTER_VALIDATION are called then. `table` has a dictionary for each validation, with step,
    epoch, loss and its parts. If a complete training is resumed with a larger total, a validation that was
    made only because of its end is removed, from the table and from the other hooks.

    Args:
        data: as for `Trainer.run`.
        every: number of steps from one validation to the next.
    """

    stage = None
    reads_batch = False

    def __init__(self, data: Any, every: int):
        self.data, self.ready = data, data
        self.every = natural("every of ValidationHook")(every)
        self.frequency = self.every
        self.table: list[dict[str, Any]] = []

    def _runs_on_stage(self, stage: Enum) -> bool:
        # The loop asks this hook between steps.
        return False

    def __call__(self, ctx: Any, stage: Any) -> None:
        raise UserCodeError(f"{name_of(self)} is called by the loop of the training alone.")

    def put(self, step: int, epoch: int, found: Any) -> None:
        """Add the result of a validation to the table."""
        self.table.append({"step": step, "epoch": epoch, "loss": found.loss, **found.losses})

    def state(self) -> dict[str, Any]:
        """The table."""
        return {"table": self.table}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Replace the table by that of a state."""
        self.table = [] if state is None else list(state["table"])

    def __repr__(self) -> str:
        return f"ValidationHook(every={self.every})"


class LowestLoss:
    """Base of hooks that look for the lowest loss of the validations. Host, at AFTER_VALIDATION.

    Attributes:
        best: that loss; infinite before the first. A loss that is not finite is not lower.
    """

    frequency = 1
    reads_batch = False
    stage = None

    def __init__(self) -> None:
        self.best = float("inf")

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in _BEGIN_AND_VALIDATIONS

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        if stage is not TrainingStage.BEFORE_TRAINING:
            self.see(float(ctx.loss), ctx)
        elif int(ctx.step_count) == 0:
            # Another training with the same hook begins anew.
            self.set_state(None)

    def see(self, loss: float, ctx: HookContext) -> None:
        """Look at the loss of a validation."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The lowest loss, as text: JSON has no infinity."""
        return {"best": repr(self.best)}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go back to a state; None: to the beginning."""
        self.best = float("inf") if state is None else float(state["best"])


class EarlyStoppingHook(LowestLoss):
    """Ends the training when the validation loss no longer falls. Host, at AFTER_VALIDATION.

    Args:
        patience: number of validations in a row without a lower loss after which the training ends.
        least: least difference to the lowest loss so far for a loss to count as lower.
    """

    def __init__(self, patience: int = 10, least: float = 0.0):
        super().__init__()
        self.patience = natural("patience")(patience)
        number("least", zero=True)(least)
        self.least = float(least)
        self.waited = 0

    def see(self, loss: float, ctx: HookContext) -> None:
        if loss < self.best - self.least:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1

    @property
    def ends_run(self) -> bool:
        """Whether the training is to end."""
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """The lowest loss, and the number of validations since."""
        return super().state() | {"waited": self.waited}

    def set_state(self, state: dict[str, Any] | None) -> None:
        super().set_state(state)
        self.waited = 0 if state is None else int(state["waited"])

    def __repr__(self) -> str:
        return f"EarlyStoppingHook(patience={self.patience}, least={self.least:g})"


class BestCheckpointHook(LowestLoss):
    """Writes the leaves of the model with the lowest validation loss to a file. Host, at AFTER_VALIDATION.

    The model is that of the validation, with averaged parameters if there are any. The file is complete or
    does not exist; `load(like)` reads it. `best` is its loss and `step` its number of steps. The file of an
    earlier training is kept until the first validation. Checkpoints contain the file, and a training that
    continues from one restores it.

    Args:
        path: path of the file, such as "best.eqx".
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path: Path = as_path("path of BestCheckpointHook")(path)
        self.step = -1
        self._content = b""

    def see(self, loss: float, ctx: HookContext) -> None:
        if not loss < self.best:
            return
        written = io.BytesIO()
        eqx.tree_serialise_leaves(written, eqx.filter(ctx.model, eqx.is_array))
        self._write(written.getvalue())
        self.best, self.step = loss, int(ctx.step_count)

    def _write(self, content: bytes) -> None:
        part = self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        self._content = content

    def load(self, like: Any) -> Any:
        """The model that was written.

        Args:
            like: a model of the same class and shapes.
        """
        arrays, rest = eqx.partition(like, eqx.is_array)
        return eqx.combine(eqx.tree_deserialise_leaves(self.path, arrays), rest)

    def state(self) -> dict[str, Any]:
        """The lowest loss, its step, and the file."""
        return super().state() | {"step": self.step, "file": np.frombuffer(self._content, np.uint8)}

    def set_state(self, state: dict[str, Any] | None) -> None:
        super().set_state(state)
        self.step = -1 if state is None else int(state["step"])
        self._content = b""
        # Without a lowest loss the file stays, as before the first validation.
        content = b"" if state is None else np.asarray(state.get("file", ()), np.uint8).tobytes()
        if content:
            self._write(content)

    def __repr__(self) -> str:
        return f"BestCheckpointHook({str(self.path)!r})"


__all__ = ["BestCheckpointHook", "EarlyStoppingHook", "LowestLoss", "ValidationHook"]
