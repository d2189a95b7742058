"""TensorBoardWriter: event files, written here so that each row is in the file when `write` returns.

The writer of tensorboardX keeps rows in a queue that cannot be waited for, and a second one within a second
replaces the file of the first.
"""

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from alchemi_jax.io.cut import ADVICE, cut_file
from alchemi_jax.io.lock import WriteLock
from alchemi_jax.io.parts import own_path


#: At the end of the names of our files, after the run that wrote them: others' are never cut or removed.
_SUFFIX = ".alchemi_jax"


class TensorBoardWriter:
    """Event files in a folder: a scalar "energy/system 3" for each column and system, over the step.

    Each opening begins a file. Going back to a state cuts the files to the lengths that they had, and removes
    those that were begun later; a TensorBoard that has read them already shows these points until it reloads.
    Several runs may write into one folder: the names of their files differ.
    """

    def __init__(self, path: Path):
        self._given = path
        #: In the names of the files of a run, also when it goes on.
        self._run = secrets.token_hex(4)
        self._file: Any = None
        self._at = 0
        self._lock: WriteLock | None = None

    @property
    def path(self) -> Path:
        """Where this process writes."""
        return own_path(self._given)

    def open(self) -> None:
        """Begins an event file.

        Raises:
            ImportError: if tensorboardX is not installed.
            OSError: naming the folder, if it cannot be written.
        """
        if self._file is not None:
            return
        # The process may change its folder while the file is open.
        self._given = self._given.absolute()
        event = _event(file_version="brain.Event:2")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        self._append(event)

    def _begin(self) -> None:
        stem = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        for number in range(10**6):
            with contextlib.suppress(FileExistsError):
                file = self.path / f"{stem}.{number}.{self._run}{_SUFFIX}"
                self._file = open(file, "xb", buffering=0)  # noqa: SIM115
                self._lock, self._at = WriteLock(file), 0
                return

    def write(self, table: dict[str, np.ndarray]) -> None:
        """Adds a point to each scalar."""
        own = self._file is None
        self.open()
        from tensorboardX.summary import scalar  # pyright: ignore

        records = []
        for name in table:
            if name in ("step", "system_id", "steps_taken"):
                continue
            # Rows of a training are of no system.
            systems = table.get("system_id")
            labels = (
                [name] * len(table["step"]) if systems is None else [f"{name}/system {i}" for i in systems]
            )
            for step, label, value in zip(table["step"], labels, table[name], strict=True):
                summary = scalar(label, float(value))
                records.append(_event(step=int(step), summary=summary))
        self._append(b"".join(records))
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
            raise type(e)(f"{self._file.name} cannot be written: {e.strerror or e}.") from e
        self._at += len(content)

    def _own_files(self) -> list[Path]:
        return sorted(self.path.glob(f"events.out.tfevents.*.{self._run}{_SUFFIX}"))

    def state(self) -> dict[str, Any]:
        """Bytes of each file of this run in the folder."""
        return {"run": self._run, "files": {file.name: file.stat().st_size for file in self._own_files()}}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go back to a state.

        Raises:
            ValueError: naming the file, if one is missing or shorter, or another process writes it.
        """
        self.close()
        lengths: dict[str, int] = {} if state is None else state["files"]
        if state is not None:
            self._run = str(state["run"])
        for name, length in lengths.items():
            file = self.path / name
            size = file.stat().st_size if file.exists() else -1
            if size < length:
                has = "does not exist" if size < 0 else f"has {size} bytes"
                raise ValueError(f"{file} {has}, the checkpoint says {length}: {ADVICE}.")
        for file in self._own_files():
            lock = WriteLock(file)
            try:
                if file.name in lengths:
                    cut_file(file, int(lengths[file.name]))
                else:
                    os.remove(file)
            finally:
                lock.release()

    def close(self) -> None:
        """Ends the event file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


def _event(**fields: Any) -> bytes:
    """An event as a record: length and contents, each with its checksum."""
    try:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore
    except ImportError:
        raise ImportError(
            "LoggingHook(backend='tensorboard') needs tensorboardX: pip install tensorboardX, or in a clone "
            "of alchemi_jax pip install -e '.[tensorboard]'."
        ) from None
    content = Event(wall_time=time.time(), **fields).SerializeToString()
    length = len(content).to_bytes(8, "little")
    return b"".join([length, _masked(length), content, _masked(content)])


def _masked(content: bytes) -> bytes:
    """The checksum as the format has it: rotated, and a constant added."""
    crc = google_crc32c.value(content)
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


__all__ = ["TensorBoardWriter"]
