"""LoggingHook: scalars of every system, as rows of a table."""

import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from alchemi_jax.dynamics.hooks.events import TensorBoardWriter
from alchemi_jax.dynamics.hooks.shown import BEFORE_MOVING, Shown, completed_steps
from alchemi_jax.dynamics.hooks.whole import FIRST, columns_of, is_whole, record_whole, table_of
from alchemi_jax.dynamics.hooks.writers import CSVWriter, Writer
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, RecordingHook
from alchemi_jax.parameters import as_flag, as_path, function
from alchemi_jax.systems.observables import fmax, temperature


COLUMNS = ("step", "system_id", "status", "energy", "fmax", "temperature", "steps_taken")


class LoggingHook(RecordingHook):
    """Writes step, system_id, status, energy (eV), fmax (eV/Å), temperature (K) and steps_taken of every
    system that is not finished. Recording, at AFTER_STEP by default: the device does not stop for it.

    Steps are those of each system, also where systems enter a batch at different times: `step` is the number
    that it had completed when the step began, 0, f, 2f, ... with frequency f, and `steps_taken` that of the
    state in the row, 1, f + 1, 2f + 1, ...; with `stage=DynamicsStage.BEFORE_STEP, final=True` the rows are
    of 0, f, 2f, ... and all steps, as in ASE. Rows of one system are in order.

    In a training, with `stage=TrainingStage.AFTER_BATCH`, there is one row per step: step, epoch, loss, the
    parts of the loss by name, the learning rate (NaN if it is not known) and custom scalars, which are then
    one number each. `final` has no effect there.

    Args:
        backend: "csv"; "tensorboard" (needs the extra of that name); or an object of your own with
            `write(table)`, which gets the columns as a dictionary of arrays, one value per row; its `open()`
            and `close()`, if it has them, are called around runs, and its `state()` and `set_state(state)`
            (see `HookFlags`) by checkpoints. Without these a run that continues after a kill writes some rows
            twice.
        log_path: path of the file, by default "dynamics.csv"; or of the folder for TensorBoard, by default
            "runs".
        frequency: number of steps of a system from one row to the next.
        custom_scalars: further columns: name -> function of the context that gives [systems]. Traced, so use
            jax.numpy.
        stress: whether a custom scalar reads the stress (the pressure does): it is then evaluated in
            every step, which costs about 60 % more than forces alone.
        stage: stage at which rows are recorded.
        final: whether `run` also writes the state that it ends with, of all systems, unless it was written.
        mode: of a CSV file: "a" appends to a file that exists (with the same columns), "w" replaces it, "x"
            refuses one that exists.

    All rows are in the file when `run` or `advance` returns or raises. An incomplete row that a killed
    process left is removed with a warning when the file is continued. A last row that may be complete but has
    no line break is refused.

    Raises:
        ValueError: for an unknown backend, a column name that is taken, or other columns in the file.
        OSError: if the file cannot be written. Both are raised when a run starts, before its first step.
    """

    def __init__(
        self,
        backend: Any = "csv",
        log_path: str | os.PathLike | None = None,
        frequency: int = 1,
        custom_scalars: Mapping[str, Callable[[HookContext], Shaped[Array, " systems"]]] | None = None,
        mode: str = "a",
        stress: bool = False,
        stage: Enum = DynamicsStage.AFTER_STEP,
        final: bool = False,
    ):
        if backend not in ("csv", "tensorboard") and not isinstance(backend, Writer):
            raise ValueError(
                "backend of LoggingHook must be 'csv', 'tensorboard' or an object with write(table), "
                f"not {backend!r}."
            )
        if not isinstance(mode, str) or mode not in ("a", "w", "x"):
            raise ValueError(f"mode of LoggingHook must be 'a', 'w' or 'x', not {mode!r}.")
        self.stage = stage
        self.final = as_flag("final")(final)
        self._shown = Shown()
        self.frequency = frequency
        self.needs_stress = as_flag("stress of LoggingHook")(stress)
        default = "dynamics.csv" if isinstance(backend, str) and backend == "csv" else "runs"
        self.log_path = as_path("log_path of LoggingHook")(default if log_path is None else log_path)
        self.custom_scalars = dict(custom_scalars or {})
        for name, scalar in self.custom_scalars.items():
            function(f"custom_scalars[{name!r}] of LoggingHook")(scalar)
        taken = [name for name in self.custom_scalars if name in COLUMNS]
        if taken:
            raise ValueError(f"custom scalar {taken[0]!r} has the name of a column of LoggingHook.")
        #: Of a training, known when a step was traced.
        self._whole: list[str] | None = None
        self._opens_late = False
        self.writer: Any = backend
        if backend == "csv":
            self.writer = CSVWriter(self.log_path, self.columns, mode)
        elif backend == "tensorboard":
            self.writer = TensorBoardWriter(self.log_path)

    def __repr__(self) -> str:
        return f"LoggingHook({str(self.log_path)!r}, frequency={self.frequency})"

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return self._whole or [*COLUMNS, *self.custom_scalars]

    #: Its lines name systems.
    follows_systems = True
    own_steps = True

    def trace_key(self) -> Any:
        return tuple(self.custom_scalars.items())

    def record(self, ctx: HookContext) -> dict[str, Any]:
        if not isinstance(self.stage, DynamicsStage) and ctx.loss is not None:
            row = record_whole(ctx, self.custom_scalars)
            self._set_columns(row)
            return row
        batch = ctx.batch
        row = {
            "step": jnp.asarray(ctx.step_count, jnp.int32),
            "active": jnp.asarray(ctx.active_mask),
            "system_id": batch.system_id,
            "status": batch.status,
            "energy": batch.energy,
            "fmax": fmax(batch),
            "temperature": temperature(batch),
            "steps_taken": completed_steps(ctx, self.stage),
        }
        for name, scalar in self.custom_scalars.items():
            value = jnp.asarray(scalar(ctx))
            if value.shape != batch.energy.shape:
                raise TypeError(
                    f"custom scalar {name!r} of LoggingHook has shape {value.shape}, expected "
                    f"one value per system, {batch.energy.shape}."
                )
            row[name] = value
        return row

    def _set_columns(self, rows: Mapping[str, Any]) -> None:
        """Take the columns of a training from its rows."""
        self._whole = columns_of(rows, self.custom_scalars)
        if isinstance(self.writer, CSVWriter):
            self.writer.columns = self._whole

    def write(self, rows: dict[str, np.ndarray]) -> None:
        if is_whole(rows):
            if self._whole is None:
                self._set_columns(rows)
            if self._opens_late:
                self._opens_late = False
                self.writer.open()
            self.writer.write(table_of(rows, self.columns))
            return
        # A row is of a system that moves: at most stages its step is counted in `steps_taken` already.
        self._write(rows, 0 if self.stage in BEFORE_MOVING else 1)

    def _write(self, rows: dict[str, np.ndarray], counted: int) -> None:
        shown = np.array(rows["active"])
        if self.final:
            for i in np.flatnonzero(shown.any(axis=1)):
                shown[i] &= ~self._shown.is_again(rows["system_id"][i], rows["steps_taken"][i])
        at_row, system = np.nonzero(shown)
        table = {"step": rows["step"][at_row]}
        table |= {name: rows[name][at_row, system] for name in self.columns[1:]}
        if isinstance(self.stage, DynamicsStage):
            table["step"] = table["steps_taken"] - counted
        self.writer.write(table)
        if self.final:
            self._shown.note(table["system_id"], table["steps_taken"])

    def write_final(self, rows: dict[str, np.ndarray], systems: Bool[np.ndarray, " systems"]) -> None:
        """Write the rows of systems whose last state was not written yet."""
        new = systems & self._shown.is_new(rows["system_id"][0], rows["steps_taken"][0])
        if new.any():
            self._write({**rows, "active": new[None]}, 0)
        self._shown.note_ended(rows["system_id"][0][systems], rows["steps_taken"][0][systems])

    def state(self) -> dict[str, Any]:
        """The length of the file, and the last step of each system that was written; for checkpoints."""
        out: dict[str, Any] = {"shown": self._shown.state()}
        return out | ({"writer": self.writer.state()} if hasattr(self.writer, "state") else {})

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Remove the rows that were written after a state. Raises what the writer raises."""
        self._shown.set_state(None if state is None else state["shown"])
        if isinstance(self.writer, CSVWriter) and not isinstance(self.stage, DynamicsStage):
            self.writer.first = FIRST if self._whole is None else None
        if hasattr(self.writer, "set_state") and (state is None or "writer" in state):
            self.writer.set_state(None if state is None else state["writer"])

    def __enter__(self) -> "LoggingHook":
        # The columns of a training are not known before a step was traced.
        training = not isinstance(self.stage, DynamicsStage) and self._whole is None
        self._opens_late = training and isinstance(self.writer, CSVWriter)
        if hasattr(self.writer, "open") and not self._opens_late:
            self.writer.open()
        return self

    def __exit__(self, *exc: Any) -> None:
        if hasattr(self.writer, "close"):
            self.writer.close()


__all__ = ["COLUMNS", "LoggingHook"]
