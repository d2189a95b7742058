"""Column: an array of a zarr v3 store that grows, written without the zarr package.

The zarr package updates metadata and rewrites the last chunk with each append, and renaming over an existing
file waits for the disk: 5 ms per array, 160 ms per frame of a batch. Here rows are collected in memory, full
chunks are written once, and a commit writes the last chunk. A column with a single value (masses of argon, a
charge of zero) has it as its fill value and no chunks. The files are plain zarr v3, with checksums.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from alchemi_jax.io.sinks.checksum import (
    CODEC,
    FILES,
    DamagedError,
    is_signed_right,
    sign,
    with_checksum,
    without_checksum,
)
from alchemi_jax.io.sinks.layout import Labels


#: A chunk has the size of the first commit, within these bounds.
LEAST_CHUNK, MOST_CHUNK = 1 << 16, 1 << 23
#: Codecs of blosc, applied to shuffled bits, since floats of a trajectory have bits in common: a fifth
#: smaller than plain zstd, in a third of its time.
CODECS = ("lz4", "zstd")
#: The index entry of a chunk of a shard in which all values are the fill value.
_NONE = (1 << 64) - 1


def put_json(path: Path, content: dict[str, Any], size: int) -> None:
    """Write JSON in place, at the beginning of a file of fixed size.

    A write within one page is complete or absent if the process is killed. A text that does not fit replaces
    the file, and so does each one after it, since the file has several pages then.
    """
    text = json.dumps(content).encode()
    if len(text) > size or (path.exists() and path.stat().st_size > size):
        size = -(-len(text) // size) * size
        new = path.with_name(path.name + ".new")
        new.write_bytes(text.ljust(size))
        os.replace(new, path)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        if os.pwrite(descriptor, text.ljust(size), 0) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The metadata of a group or array.

    Raises:
        DamagedError: naming the file, if it is missing or not what was written.
    """
    for attempt in range(5):
        try:
            meta = json.loads(path.read_bytes())
            if isinstance(meta, dict) and is_signed_right(meta):
                return meta
            reason = "its checksum is not that of its contents"
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing: the store is damaged.") from None
        except (ValueError, AttributeError, TypeError) as e:
            reason = " ".join(str(e).split())
        # A run may be writing it just now.
        time.sleep(0.02 * attempt)
    raise DamagedError(f"{path} is damaged: {reason}.")


class Column:
    """A growing array [rows, ...]: `append` keeps rows in memory, `commit` writes them to disk.

    Args:
        folder: folder of the array in the store.
        dtype, row: dtype, and shape of a row.
        chunk: number of rows of a file.
        fill: fill value of zarr.
        length: number of valid rows; later rows in the store are overwritten.
        codec: codec of blosc, see `CODECS`; None: no compression.
        inner: number of rows that are compressed together and can be read separately; the file is then a
            shard of zarr. By default all rows of the file.
        labels: names of dimensions and unit.
        checksums: whether chunks have a checksum; those of stores of earlier versions do not.
    """

    #: Ranges of chunks that have files; None if it is not known, in a store of an earlier version.
    _files: list[list[int]] | None

    def __init__(
        self,
        folder: Path,
        dtype: Any,
        row: tuple[int, ...],
        chunk: int,
        fill: Any = 0,
        length: int = 0,
        codec: str | None = "lz4",
        inner: int | None = None,
        labels: Labels | None = None,
        checksums: bool = True,
    ):
        from numcodecs import Blosc

        self.folder, self.dtype, self.row, self.chunk = folder, np.dtype(dtype), tuple(row), chunk
        self.fill, self.length, self.codec = self.dtype.type(fill), length, codec
        self.inner, self.labels, self.checksums = inner, labels, checksums
        self._files = []
        level, size = (5 if codec == "lz4" else 1), self.dtype.itemsize
        self._encoder = None if codec is None else Blosc(codec, level, Blosc.BITSHUFFLE, typesize=size)
        #: The last, incomplete chunk; None while all its rows are the fill value.
        self._tail: Shaped[np.ndarray, "chunk ..."] | None = None
        #: Number of rows of the last chunk, and how many of them are on disk.
        self._in_chunk = self._on_disk = length % chunk

    @classmethod
    def like(
        cls,
        folder: Path,
        rows: Shaped[np.ndarray, "rows ..."],
        chunk_bytes: int | None,
        codec: str | None,
        shard_bytes: int | None = None,
        labels: Labels | None = None,
    ) -> "Column":
        """An empty column for rows like these."""
        per_row = max(rows.dtype.itemsize * int(np.prod(rows.shape[1:])), 1)
        size = chunk_bytes or min(max(rows.nbytes, LEAST_CHUNK), MOST_CHUNK)
        fill = rows.flat[0] if rows.size and _all_are(rows, rows.flat[0]) else 0
        folder.mkdir()
        inner = None
        if shard_bytes is not None:
            inner = max((chunk_bytes or LEAST_CHUNK) // per_row, 1)
            size = max(shard_bytes // (inner * per_row), 1) * inner * per_row
        return cls(folder, rows.dtype, rows.shape[1:], max(size // per_row, 1), fill, 0, codec, inner, labels)

    @classmethod
    def existing(cls, folder: Path, length: int | None = None) -> "Column":
        """The column of a store, cut to `length` rows; without a length, to read its chunks.

        Raises:
            DamagedError: naming the file, if metadata or the last chunk are not what was written.
        """
        meta = read_json(folder / "zarr.json")
        chunk = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        codecs = {c["name"]: c.get("configuration", {}) for c in meta["codecs"]}
        inner = None
        if "sharding_indexed" in codecs:
            shard = codecs["sharding_indexed"]
            inner = shard["chunk_shape"][0]
            codecs = {c["name"]: c.get("configuration", {}) for c in shard["codecs"]}
        codec = codecs["blosc"]["cname"] if "blosc" in codecs else None
        # JSON has no NaN and no infinity; they are stored as strings that float accepts.
        fill = float(meta["fill_value"]) if isinstance(meta["fill_value"], str) else meta["fill_value"]
        attributes, labels = meta.get("attributes", {}), None
        if meta.get("dimension_names"):
            labels = Labels(tuple(meta["dimension_names"]), attributes.get("units"))
        row, checksums = tuple(meta["shape"][1:]), "crc32c" in codecs
        column = cls(
            folder, meta["data_type"], row, chunk, fill, length or 0, codec, inner, labels, checksums
        )  # fmt: skip
        column._files = attributes.get(FILES)
        if length is None:
            return column
        if column._files is not None:
            n = -(-length // chunk)
            column._files = [[first, min(stop, n)] for first, stop in column._files if first < n]
        if column._in_chunk and column.has_file(length // chunk):
            column._begin_chunk()[:] = column.read_chunk(length // chunk)
            column._begin_chunk()[column._in_chunk :] = column.fill
        return column

    def has_file(self, index: int) -> bool:
        """Whether a chunk has a file; if not, all its rows are the fill value.

        Raises:
            DamagedError: if it should have one, and it is missing.
        """
        path = self.file(index)
        if path.exists():
            return True
        if any(first <= index < stop for first, stop in self._files or []):
            raise DamagedError(f"{path} is missing: the store is damaged.")
        return False

    def read_chunk(self, index: int) -> Shaped[np.ndarray, "chunk ..."]:
        """The rows of a chunk that has a file.

        Raises:
            DamagedError: if the file is not what was written.
        """
        rows = self._empty_chunk()
        try:
            self._decode(self.file(index).read_bytes(), rows)
        except Exception as e:
            reason = " ".join(str(e).split()) or type(e).__name__
            raise DamagedError(f"{self.file(index)} is damaged: {reason}.") from None
        return rows

    def append(self, rows: Shaped[np.ndarray, "rows ..."]) -> None:
        """Add rows, and write chunks that are full."""
        while len(rows):
            n = min(self.chunk - self._in_chunk, len(rows))
            if self._tail is not None or not _all_are(rows[:n], self.fill):
                self._begin_chunk()[self._in_chunk : self._in_chunk + n] = rows[:n]
            self._in_chunk += n
            self.length += n
            rows = rows[n:]
            if self._in_chunk == self.chunk:
                self._write_tail(self.length // self.chunk - 1)
                self._tail = None
                self._in_chunk = self._on_disk = 0

    def commit(self) -> None:
        """Write the rows that are not on disk yet, and the shape."""
        if self._in_chunk > self._on_disk:
            self._write_tail(self.length // self.chunk)
            self._on_disk = self._in_chunk
        put_json(self.folder / "zarr.json", self._metadata(), 1024)

    def last(self, count: int) -> Shaped[np.ndarray, "rows ..."]:
        """The last rows: so many, or all if there are fewer."""
        start = max(self.length - count, 0)
        first, chunk = start // self.chunk, self.length // self.chunk
        parts = [self.read_chunk(k) if self.has_file(k) else self._empty_chunk() for k in range(first, chunk)]
        if self._in_chunk:
            parts.append((self._empty_chunk() if self._tail is None else self._tail)[: self._in_chunk])
        parts = parts or [np.zeros((0, *self.row), self.dtype)]
        return np.concatenate(parts)[start - first * self.chunk :]

    def remove_rest(self) -> None:
        """Write the shape, and remove the files of rows after it."""
        put_json(self.folder / "zarr.json", self._metadata(), 1024)
        n = -(-self.length // self.chunk)
        for path in self.folder.iterdir():
            parts = path.name.split(".")
            if path.name.endswith(".new") or (parts[0] == "c" and int(parts[1]) >= n):
                path.unlink()

    def _empty_chunk(self) -> Shaped[np.ndarray, "chunk ..."]:
        return np.full((self.chunk, *self.row), self.fill, self.dtype)

    def _begin_chunk(self) -> Shaped[np.ndarray, "chunk ..."]:
        if self._tail is None:
            shape = (self.chunk, *self.row)
            zero = np.all(self.fill == 0)
            # np.zeros is faster: the pages are allocated on first use.
            self._tail = np.zeros(shape, self.dtype) if zero else np.full(shape, self.fill, self.dtype)
        return self._tail

    def file(self, index: int) -> Path:
        """The file of a chunk."""
        return self.folder / ".".join(["c", str(index), *("0" for _ in self.row)])

    def _write_tail(self, index: int) -> None:
        path = self.file(index)
        if self._tail is None:
            # A file here has rows that were never committed.
            path.unlink(missing_ok=True)
            return
        raw = self._encode(self._tail)
        if self._files is not None and not any(first <= index < stop for first, stop in self._files):
            if self._files and self._files[-1][1] == index:
                self._files[-1][1] = index + 1
            else:
                self._files.append([index, index + 1])
        if not self._on_disk:
            path.write_bytes(raw)
            return
        # The file has committed rows. It is replaced by rename, so that readers, also after a crash, find a
        # complete file.
        new = path.with_name(path.name + ".new")
        new.write_bytes(raw)
        os.replace(new, path)

    def _encode(self, rows: Shaped[np.ndarray, "chunk ..."]) -> bytes:
        """The contents of the file of a chunk; of a shard, its parts and an index of offsets and lengths."""
        if self.inner is None:
            return self._encode_piece(rows)
        pieces, index, at = [], [], 0
        for k in range(0, len(rows), self.inner):
            rows_of = rows[k : k + self.inner]
            if _all_are(rows_of, self.fill):
                index.append((_NONE, _NONE))
                continue
            pieces.append(self._encode_piece(rows_of))
            index.append((at, len(pieces[-1])))
            at += len(pieces[-1])
        table = np.array(index, "<u8").tobytes()
        return b"".join([*pieces, with_checksum(table) if self.checksums else table])

    def _encode_piece(self, rows: Shaped[np.ndarray, "rows ..."]) -> bytes:
        raw = rows.tobytes() if self._encoder is None else self._encoder.encode(rows)
        return with_checksum(raw) if self.checksums else raw

    def _decode(self, raw: bytes, rows: Shaped[np.ndarray, "chunk ..."]) -> None:
        """The inverse of `_encode`, into rows that are the fill value."""
        index = np.array([[0, len(raw)]], np.uint64)
        if self.inner is not None:
            table = raw[-16 * (len(rows) // self.inner) - 4 * self.checksums :]
            table = without_checksum(table) if self.checksums else table
            index = np.frombuffer(table, "<u8").reshape(-1, 2)
        step = self.inner or len(rows)
        for k, (at, size) in enumerate(index.tolist()):
            if at == _NONE:
                continue
            piece = raw[at : at + size]
            piece = without_checksum(piece) if self.checksums else piece
            piece = piece if self._encoder is None else self._encoder.decode(piece)
            shape = (step, *self.row)
            rows[k * step : (k + 1) * step] = np.frombuffer(piece, self.dtype).reshape(shape)

    def _metadata(self) -> dict[str, Any]:
        one_byte = self.dtype.itemsize == 1
        plain: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        checksum = [CODEC] if self.checksums else []
        codecs: list[dict[str, Any]] = [{"name": "bytes"} if one_byte else plain]
        if self._encoder is not None:
            blosc = {
                "cname": self.codec,
                "clevel": self._encoder.clevel,
                "shuffle": "bitshuffle",
                "typesize": self.dtype.itemsize,
                "blocksize": 0,
            }
            codecs.append({"name": "blosc", "configuration": blosc})
        codecs += checksum
        row = [max(n, 1) for n in self.row]
        if self.inner is not None:
            shard = {
                "chunk_shape": [self.inner, *row],
                "codecs": codecs,
                "index_codecs": [plain, *checksum],
                "index_location": "end",
            }
            codecs = [{"name": "sharding_indexed", "configuration": shard}]
        attributes: dict[str, Any] = {} if self._files is None else {FILES: self._files}
        meta = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.length, *self.row],
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.chunk, *row]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _json_number(self.fill.item()),
            "codecs": codecs,
            "attributes": attributes,
        }
        if self.labels is not None:
            meta["dimension_names"] = list(self.labels.dimensions)
            if self.labels.unit is not None:
                attributes["units"] = self.labels.unit
        return meta if self._files is None else sign(meta)


def _all_are(rows: Shaped[np.ndarray, "..."], value: Any) -> bool:
    same = rows == value
    return bool(np.all(same)) or bool(value != value and np.all(np.isnan(rows)))


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
