"""LoggingHook: scalars of every system, as rows of a table."""

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, RecordingHook
from alchemi_jax.observables import fmax, temperature


COLUMNS = ("step", "system_id", "status", "energy", "fmax", "temperature")


class LoggingHook(RecordingHook):
    """Writes step, system_id, status, energy (eV), fmax (eV/Å) and temperature (K) of every system
    that is not finished. Recording, at AFTER_STEP: the device does not stop for it.

    Args:
        backend: "csv".
        log_path: the file.
        frequency: log every so many steps.
        custom_scalars: more columns: name -> function of the context that gives [systems]. Traced,
            so written with jax.numpy.
        mode: "a" goes on with a file that exists (its columns must be the same), "w" starts it anew,
            "x" refuses one that exists.

    Rows are complete in the file when `run` or `advance` returns, or raises.

    Raises:
        ValueError: for an unknown backend, a column name that is taken, or other columns in the file.
        OSError: if the file cannot be written; both when the run starts, before the first step.
    """

    def __init__(
        self,
        backend: str = "csv",
        log_path: str | os.PathLike = "dynamics.csv",
        frequency: int = 1,
        custom_scalars: Mapping[str, Callable[[HookContext], Array]] | None = None,
        mode: str = "a",
    ):
        if backend != "csv":
            raise ValueError(f"LoggingHook has the backend 'csv', not {backend!r}.")
        if mode not in ("a", "w", "x"):
            raise ValueError(f"mode of LoggingHook must be 'a', 'w' or 'x', not {mode!r}.")
        self.stage = DynamicsStage.AFTER_STEP
        self.frequency = frequency
        self.log_path = Path(log_path)
        self.custom_scalars = dict(custom_scalars or {})
        self.mode = mode
        taken = [name for name in self.custom_scalars if name in COLUMNS]
        if taken:
            raise ValueError(f"custom scalar {taken[0]!r} has the name of a column of LoggingHook.")
        self._file: Any = None

    def __repr__(self) -> str:
        return f"LoggingHook({str(self.log_path)!r}, frequency={self.frequency})"

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return [*COLUMNS, *self.custom_scalars]

    def trace_key(self) -> Any:
        return tuple(self.custom_scalars.items())

    def record(self, ctx: HookContext) -> dict[str, Any]:
        batch = ctx.batch
        row = {
            "step": jnp.asarray(ctx.step_count, jnp.int32),
            "active": jnp.asarray(ctx.active_mask),
            "system_id": batch.system_id,
            "status": batch.status,
            "energy": batch.energy,
            "fmax": fmax(batch),
            "temperature": temperature(batch),
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

    def write(self, rows: dict[str, np.ndarray]) -> None:
        own = self._file is None
        if own:
            self._open()
        assert self._file is not None
        out = csv.writer(self._file, lineterminator="\n")
        at_row, system = np.nonzero(rows["active"])
        table = [rows["step"][at_row].tolist()]
        for name in self.columns[1:]:
            values = rows[name][at_row, system]
            if values.dtype.kind == "f":
                # The shortest decimals that give the number back.
                table.append([_shortest(v) for v in values])
            else:
                table.append(values.tolist())
        out.writerows(zip(*table, strict=True))
        self._file.flush()
        if own:
            self._close()

    def __enter__(self) -> "LoggingHook":
        if self._file is None:
            self._open()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._close()

    def _open(self) -> None:
        header = ",".join(self.columns)
        if self.mode == "a" and self.log_path.exists() and self.log_path.stat().st_size:
            with open(self.log_path) as f:
                found = f.readline().rstrip("\n")
            if found != header:
                raise ValueError(
                    f"{self.log_path} has the columns {found}, this LoggingHook writes {header}: "
                    "give another log_path, or mode='w' to start the file anew."
                )
            self._file = open(self.log_path, "a", newline="")  # noqa: SIM115
            return
        self._file = open(self.log_path, self.mode, newline="")  # noqa: SIM115
        # A second run of the same hook goes on in its own file.
        self.mode = "a"
        self._file.write(header + "\n")
        self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _shortest(value: np.floating) -> str:
    return np.format_float_scientific(value, trim="-", exp_digits=1) if value else "0"


__all__ = ["LoggingHook"]
