"""Where LoggingHook writes its tables: CSV files, TensorBoard, or anything with a `write`."""

import csv
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from alchemi_jax.io.lock import WriteLock, open_locked


#: Bytes that the last row is looked for in.
_LONGEST = 1 << 16
#: name of a column -> its values, one a row; all of one length.
Table = dict[str, np.ndarray]


@runtime_checkable
class Writer(Protocol):
    """Takes tables with the same columns, in order; `open` and `close`, if any, are called around runs."""

    def write(self, table: Table) -> Any:
        """Appends the rows of a table."""


class CSVWriter:
    """Rows of a CSV file; see `LoggingHook` for the modes.

    What is not a number is NaN, which pandas, polars and numpy read as a number; "nan" makes a column of text
    in polars.
    """

    def __init__(self, path: Path, columns: list[str], mode: str):
        self.path, self.columns, self.mode = path, columns, mode
        self._file: Any = None
        self._lock: WriteLock | None = None

    def open(self) -> None:
        """Opens the file, and writes the columns if it is new.

        Raises:
            ValueError: if the file has other columns, ends in a row that may be broken, or is being written
                by another log.
        """
        if self._file is not None:
            return
        self._lock = open_locked(self.path, self._open)

    def _open(self) -> None:
        if self.mode == "a" and self.path.exists() and self.path.stat().st_size:
            self._check_end(self._check_columns())
            self._file = open(self.path, "a", newline="")  # noqa: SIM115
            return
        self._file = open(self.path, self.mode, newline="")  # noqa: SIM115
        # A second run of the same hook goes on in its own file.
        self.mode = "a"
        csv.writer(self._file, lineterminator="\n").writerow(self.columns)
        self._file.flush()

    def _check_columns(self) -> bool:
        """Whether there are rows in the file, which has the right columns."""
        with open(self.path, newline="", errors="replace") as file:
            reader = csv.reader(file)
            try:
                found, has_rows = next(reader, []), next(reader, None) is not None
            except csv.Error:
                found, has_rows = [], False
        if found != self.columns:
            raise ValueError(
                f"{self.path} has the columns {','.join(found)}, this LoggingHook writes "
                f"{','.join(self.columns)}: give another log_path, or mode='w' to begin the file again."
            )
        return has_rows

    def _check_end(self, has_rows: bool) -> None:
        """Remove a row that a killed process did not finish; refuse one that may be whole or not."""
        with open(self.path, "rb+") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(size - _LONGEST, 0))
            tail = file.read()
            if tail.endswith(b"\n"):
                return
            row = tail[tail.rfind(b"\n") + 1 :]
            text = row.decode(errors="replace")
            if not has_rows or b"\n" not in tail or row.count(b",") >= len(self.columns) - 1:
                raise ValueError(
                    f"{self.path} ends in the row {text[-100:]!r} without a line break: it may be broken; "
                    "end it with a line break if it is whole, or remove it."
                )
            file.truncate(size - len(row))
        warnings.warn(
            f"{self.path}: the last row, {text!r}, was not written to its end and has been removed.",
            RuntimeWarning,
            stacklevel=4,
        )

    def write(self, table: Table) -> None:
        """Appends rows; numbers with as many digits as give them back."""
        own = self._file is None
        self.open()
        columns = [_written(table[name]) for name in self.columns]
        csv.writer(self._file, lineterminator="\n").writerows(zip(*columns, strict=True))
        self._file.flush()
        if own:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _written(values: np.ndarray) -> list:
    """What the csv module makes right text of: of a float64 by itself, of a float32 in nine digits."""
    out = values.tolist()
    if values.dtype == np.float32:
        out = [format(v, ".9g") for v in out]
    if values.dtype.kind == "f":
        for i in np.flatnonzero(np.isnan(values)).tolist():
            out[i] = "NaN"
    return out


class TensorBoardWriter:
    """Event files in a folder: a scalar "energy/system 3" for each column and system, over the step."""

    def __init__(self, path: Path):
        self.path = path
        self._writer: Any = None

    def open(self) -> None:
        """Begins an event file.

        Raises:
            ImportError: if tensorboardX is not installed.
        """
        if self._writer is not None:
            return
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore
        except ImportError:
            raise ImportError(
                "LoggingHook(backend='tensorboard') needs tensorboardX: pip install alchemi-jax[tensorboard]."
            ) from None
        self._writer = SummaryWriter(str(self.path))

    def write(self, table: Table) -> None:
        """Adds a point to each scalar."""
        own = self._writer is None
        self.open()
        for name in table:
            if name in ("step", "system_id", "steps_taken"):
                continue
            for step, system, value in zip(table["step"], table["system_id"], table[name], strict=True):
                self._writer.add_scalar(f"{name}/system {system}", float(value), int(step))
        self._writer.flush()
        if own:
            self.close()

    def close(self) -> None:
        """Ends the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


__all__ = ["CSVWriter", "Table", "TensorBoardWriter", "Writer"]
