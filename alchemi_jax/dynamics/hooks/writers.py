"""Where LoggingHook writes its tables: CSV files, or anything with a `write`."""

import contextlib
import csv
import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from alchemi_jax.io.cut import check_end, cut_file, end_of_file
from alchemi_jax.io.lock import WriteLock, open_locked
from alchemi_jax.io.parts import check_parts, own_path


#: Bytes that the last row is looked for in.
_LONGEST = 1 << 16
#: name of a column -> its values, one a row; all of one length.
Table = dict[str, np.ndarray]


@runtime_checkable
class Writer(Protocol):
    """Takes tables with the same columns, in order.

    `open` and `close`, if any, are called around runs, `state` and `set_state`, if any, by checkpoints.
    """

    def write(self, table: Table) -> Any:
        """Appends the rows of a table."""


class CSVWriter:
    """Rows of a CSV file; see `LoggingHook` for the modes.

    What is not a number is NaN, which pandas, polars and numpy read as a number; "nan" makes a column of text
    in polars.
    """

    def __init__(self, path: Path, columns: list[str], mode: str):
        self._given, self.columns, self.mode = path, columns, mode
        #: With which columns the file begins, as long as the others are not known.
        self.first: tuple[str, ...] | None = None
        self._file: Any = None
        self._lock: WriteLock | None = None
        #: Length of the file while it is open; rows in a part of it, and the length of that part.
        self._at = 0
        self._counted = (0, 0)

    @property
    def path(self) -> Path:
        """Where this process writes."""
        return own_path(self._given)

    def open(self) -> None:
        """Opens the file, and writes the columns if it is new.

        Raises:
            ValueError: if the file has other columns, ends in a row that may be broken, is being written by
                another log, or was written by another number of processes.
        """
        if self._file is not None:
            return
        check_parts(self._given)
        # The process may change its folder while the file is open.
        self._given = self._given.absolute()
        if self.mode == "x":
            self._refuse_existing()
        try:
            self._lock = open_locked(self.path, self._open)
        except OSError as e:
            if e.errno is None:
                raise
            raise type(e)(f"{self.path} cannot be written: {e.strerror}.") from e

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise FileExistsError(f"{self.path} exists: give another path, or mode='w' or 'a'.")

    def _open(self) -> None:
        if self.mode == "a" and self.path.exists() and self.path.stat().st_size:
            self._check_end(self._check_columns())
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            self._at = self.path.stat().st_size
            return
        self._file = open(self.path, self.mode + "b", buffering=0)  # noqa: SIM115
        # A second run of the same hook goes on in its own file.
        self.mode = "a"
        self._at, self._counted = 0, (0, 0)
        try:
            self._append(_text([self.columns]))
        except OSError:
            self.close()
            raise

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
        try:
            self._append(_text(zip(*columns, strict=True)))
        finally:
            if own:
                self.close()

    def _append(self, content: bytes) -> None:
        """All of it, or nothing if there is an error."""
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as e:
            with contextlib.suppress(OSError):
                self._file.truncate(self._at)
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        self._at += len(content)

    def state(self) -> dict[str, Any] | None:
        """Bytes and rows of the file, and a checksum of its end; None: there is no file to go on with.

        Raises:
            FileExistsError: naming the path, if opening the file will refuse it, mode "x".
        """
        if self._file is None and self.mode == "x":
            self._refuse_existing()
        if self._file is None and (self.mode == "w" or not self.path.exists()):
            return None
        with open(self.path, "rb") as file:
            length = self._at if self._file is not None else file.seek(0, os.SEEK_END)
            start = max(length - _LONGEST, 0)
            file.seek(start)
            # Opening removes a row that is not complete.
            length = start + file.read(length - start).rfind(b"\n") + 1 or length
            return end_of_file(self.path, length) | {"rows": self._count_rows(file, length)}

    def _count_rows(self, file: IO[bytes], length: int) -> int:
        """Rows in the first bytes of the file, apart from the columns. Only what is new is read."""
        lines, at = self._counted if self._counted[1] <= length else (0, 0)
        file.seek(at)
        while at < length and (part := file.read(min(length - at, 1 << 20))):
            lines, at = lines + part.count(b"\n"), at + len(part)
        self._counted = lines, at
        return max(lines - 1, 0)

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go back to a state: later rows are removed, with None the file. Writing appends from now on.

        Raises:
            ValueError: naming the file, if it has less than the state says or is another one.
        """
        stays_open = self._file is not None
        self.close()
        lock = WriteLock(self.path) if self.path.is_file() else None
        try:
            if state is not None and (state["bytes"] or self.path.exists()):
                check_end(self.path, state, f"{state['rows']} rows")
                cut_file(self.path, int(state["bytes"]))
            elif state is None and self.path.exists():
                self._remove_own()
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        finally:
            if lock is not None:
                lock.release()
        self.mode, self._counted = "a", (0, 0)
        if stays_open:
            self.open()

    def _remove_own(self) -> None:
        columns = _text([self.columns if self.first is None else self.first])
        columns = columns if self.first is None else columns.rstrip()
        with open(self.path, "rb") as file:
            head = file.read(len(columns))
        # A process may have been killed while it wrote the columns.
        if not columns.startswith(head):
            raise ValueError(
                f"{self.path} exists, the checkpoint says that it does not, and it is not a log with these "
                "columns: move it, or give another log_path."
            )
        self.path.unlink()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _text(rows: Iterable[Iterable[Any]]) -> bytes:
    """Rows as text, each with its line break."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _written(values: np.ndarray) -> list:
    """What the csv module makes right text of: of a float64 by itself, of a float32 in nine digits."""
    out = values.tolist()
    if values.dtype == np.float32:
        out = [format(v, ".9g") for v in out]
    if values.dtype.kind == "f":
        for i in np.flatnonzero(np.isnan(values)).tolist():
            out[i] = "NaN"
    return out


__all__ = ["CSVWriter", "Table", "Writer"]
