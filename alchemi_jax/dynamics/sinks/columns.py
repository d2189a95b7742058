"""Column: an array of a zarr v3 store that grows, written without zarr's own machinery.

A general writer updates metadata and rewrites the last chunk with every append, and a rename over a file
that exists waits for the disk: 5 ms an array, 160 ms a frame of a batch. Here rows gather in memory, whole
chunks are written once, and a commit writes what has begun. What is on disk is plain zarr v3.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd


#: A chunk holds twice the first write, within these bounds.
LEAST_CHUNK, MOST_CHUNK = 1 << 18, 1 << 23


def put_json(path: Path, content: dict[str, Any], size: int) -> None:
    """JSON at the beginning of a file of fixed size, written in place.

    One write within one page is whole or not there when the process is killed. A text that does
    not fit replaces the file.
    """
    text = json.dumps(content).encode()
    if len(text) > size:
        size = -(-len(text) // size) * size
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(text.ljust(size))
        os.replace(fresh, path)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        # Longer than the file may be if it was written by somebody else.
        os.pwrite(descriptor, text.ljust(max(size, os.fstat(descriptor).st_size)), 0)
    finally:
        os.close(descriptor)


class Column:
    """A growing array [rows, ...]: `append` remembers rows, `commit` puts them on disk.

    Args:
        folder: of the array in the store.
        dtype, row: of an element, and the shape of a row.
        chunk: rows of a chunk.
        length: rows that count; what a store has beyond them is written over.
        level: of zstd, None: no compression.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Any,
        row: tuple[int, ...],
        chunk: int,
        length: int = 0,
        level: int | None = 0,
    ):
        self.folder, self.dtype, self.row, self.chunk = folder, np.dtype(dtype), tuple(row), chunk
        self.length, self.level = length, level
        self._codec = None if level is None else Zstd(level=level)
        self._tail = np.zeros((chunk, *self.row), self.dtype)
        #: Rows of the tail, and how many of them a file on disk holds.
        self._held = self._on_disk = length % chunk

    @classmethod
    def like(cls, folder: Path, rows: np.ndarray, chunk_bytes: int | None, level: int | None) -> "Column":
        """An empty column for rows such as these."""
        per_row = max(rows.dtype.itemsize * int(np.prod(rows.shape[1:])), 1)
        size = chunk_bytes or min(max(2 * rows.nbytes, LEAST_CHUNK), MOST_CHUNK)
        folder.mkdir()
        return cls(folder, rows.dtype, rows.shape[1:], max(size // per_row, 1), level=level)

    @classmethod
    def existing(cls, folder: Path, length: int) -> "Column":
        """The column of a store, cut to `length` rows."""
        meta = json.loads((folder / "zarr.json").read_text())
        chunk = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        codecs = {c["name"]: c.get("configuration", {}) for c in meta["codecs"]}
        level = codecs["zstd"]["level"] if "zstd" in codecs else None
        column = cls(folder, meta["data_type"], tuple(meta["shape"][1:]), chunk, length, level)
        if column._held:
            raw = column._file(length // chunk).read_bytes()
            raw = raw if column._codec is None else column._codec.decode(raw)
            column._tail[:] = np.frombuffer(raw, column.dtype)[: column._tail.size].reshape(
                column._tail.shape
            )
            column._tail[column._held :] = 0
        return column

    def append(self, rows: np.ndarray) -> None:
        """Adds rows; chunks that are full are written."""
        while len(rows):
            n = min(self.chunk - self._held, len(rows))
            self._tail[self._held : self._held + n] = rows[:n]
            self._held += n
            self.length += n
            rows = rows[n:]
            if self._held == self.chunk:
                self._write_tail(self.length // self.chunk - 1)
                self._tail[:] = 0
                self._held = self._on_disk = 0

    def commit(self) -> None:
        """Writes the rows that no file holds, and the shape."""
        if self._held > self._on_disk:
            self._write_tail(self.length // self.chunk)
            self._on_disk = self._held
        put_json(self.folder / "zarr.json", self._metadata(), 1024)

    def _file(self, index: int) -> Path:
        return self.folder / ".".join(["c", str(index), *("0" for _ in self.row)])

    def _write_tail(self, index: int) -> None:
        raw = self._tail.tobytes()
        raw = raw if self._codec is None else self._codec.encode(raw)
        path = self._file(index)
        if not self._on_disk:
            path.write_bytes(raw)
            return
        # It holds rows that count: whoever reads, and whoever comes after a crash, finds a whole file.
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(raw)
        os.replace(fresh, path)

    def _metadata(self) -> dict[str, Any]:
        one_byte = self.dtype.itemsize == 1
        codecs: list[dict[str, Any]] = [
            {"name": "bytes"} if one_byte else {"name": "bytes", "configuration": {"endian": "little"}}
        ]
        if self.level is not None:
            codecs.append({"name": "zstd", "configuration": {"level": self.level, "checksum": False}})
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.length, *self.row],
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.chunk, *(max(n, 1) for n in self.row)]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": False if self.dtype == bool else 0,
            "codecs": codecs,
            "attributes": {},
        }
