"""Where LoggingHook writes its tables: CSV files, TensorBoard, or anything with a `write`."""

import csv
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np


#: name of a column -> its values, one a row; all of one length.
Table = dict[str, np.ndarray]


@runtime_checkable
class Writer(Protocol):
    """Takes tables with the same columns, in order; `open` and `close`, if any, are called around runs."""

    def write(self, table: Table) -> Any:
        """Appends the rows of a table."""


class CSVWriter:
    """Rows of a CSV file; see `LoggingHook` for the modes."""

    def __init__(self, path: Path, columns: list[str], mode: str):
        self.path, self.columns, self.mode = path, columns, mode
        self._file: Any = None

    def open(self) -> None:
        """Opens the file, and writes the columns if it is new."""
        if self._file is not None:
            return
        header = ",".join(self.columns)
        if self.mode == "a" and self.path.exists() and self.path.stat().st_size:
            with open(self.path) as f:
                found = f.readline().rstrip("\n")
            if found != header:
                raise ValueError(
                    f"{self.path} has the columns {found}, this LoggingHook writes {header}: "
                    "give another log_path, or mode='w' to begin the file again."
                )
            self._file = open(self.path, "a", newline="")  # noqa: SIM115
            return
        self._file = open(self.path, self.mode, newline="")  # noqa: SIM115
        # A second run of the same hook goes on in its own file.
        self.mode = "a"
        self._file.write(header + "\n")
        self._file.flush()

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


def _written(values: np.ndarray) -> list:
    """What the csv module makes right text of: of a float64 by itself, of a float32 in nine digits."""
    if values.dtype == np.float32:
        return [format(v, ".9g") for v in values.tolist()]
    return values.tolist()


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
