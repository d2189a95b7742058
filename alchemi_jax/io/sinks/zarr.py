"""ZarrData: systems on disk, in one zarr group.

Systems of any sizes are stored one after another: fields per atom are flat arrays over the atoms of all
systems, fields per system have one row per system, and the cumulative sum of `atoms_per_system` gives the
atoms of each system. Name, `info` and constraints of each system are JSON in `meta`, split by `meta_end`;
`frame` is the number of the write. A commit writes all arrays, then the numbers of systems and atoms in the
attributes of the group. Rows beyond these are not valid, so that a store is consistent after each commit, and
after a crash during one. `stored.py` reads it.
"""

import os
import shutil
import threading
from typing import Any

import numpy as np
from jaxtyping import Shaped

from alchemi_jax.io.lock import WriteLock
from alchemi_jax.io.parts import check_parts, part_paths
from alchemi_jax.io.sinks.base import (
    Format,
    check_batch,
    check_same_format,
    extra_format,
    format_of,
    systems_mask,
)
from alchemi_jax.io.sinks.columns import CODECS, Column
from alchemi_jax.io.sinks.joined import open_stored
from alchemi_jax.io.sinks.layout import STORED, Labels, Texts, array_name
from alchemi_jax.io.sinks.on_disk import SinkOnDisk
from alchemi_jax.io.sinks.store import (
    BEGUN,
    GROUP,
    cut_store,
    empty_attributes,
    empty_store,
    has_store,
    open_columns,
    put_attributes,
    remove_store,
    store_state,
    with_path,
)
from alchemi_jax.io.sinks.stored import StoredSystems, attributes_of
from alchemi_jax.parameters import natural, optional
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


#: Bytes that may wait in memory.
_WAITING_BYTES = 1 << 24


class ZarrData(SinkOnDisk):
    """A zarr v3 group of systems, with arrays over all atoms and over all systems in order of writing.

    While a run has the sink open, a thread commits writes about every second, and `close` at the end. A
    process that is killed loses at most the last second. If more than 16 MiB wait in memory, `write` itself
    writes them to disk. A sink that is not open commits each write at once.

    Args:
        path: path of a directory, created when the first system is written or a run opens the sink.
        mode: "a" appends to an existing store, "w" replaces it, "x" raises an error if it exists, "r" only
            reads.
        chunk_bytes: size of a chunk; by default that of the first commit, from 64 KiB to 8 MiB.
        shard_bytes: size of a file, if it is to have several chunks of `chunk_bytes` (64 KiB by default) that
            can be read separately; by default a chunk is a file.
        compression: "lz4", "zstd" (smaller and slower), both on shuffled bits, or None. These three only
            apply to new stores.

    Raises:
        ValueError: if the path is not a store, or has systems of another dtype or with other extras.
        FileExistsError, PermissionError and other OSErrors: naming the path.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        mode: str = "a",
        *,
        chunk_bytes: int | None = None,
        shard_bytes: int | None = None,
        compression: str | None = "lz4",
    ):
        super().__init__(path, mode)
        self.chunk_bytes = optional(natural("chunk_bytes of ZarrData"))(chunk_bytes)
        self.shard_bytes = optional(natural("shard_bytes of ZarrData"))(shard_bytes)
        if compression not in (None, *CODECS):
            known = ", ".join(map(repr, CODECS))
            raise ValueError(f"compression of ZarrData must be {known} or None, not {compression!r}.")
        self.compression = compression
        self.commit_seconds = 1.0
        self._attributes: dict[str, Any] | None = None
        self._columns: dict[str, Column] = {}
        #: Format of the systems in the store; batches that wait to be written.
        self._format: Format | None = None
        self._waiting: list[HostBatch] = []
        self._waiting_bytes = 0
        self._texts = Texts()
        self._stays_open = False
        self._write_lock: WriteLock | None = None
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._error: BaseException | None = None

    # -- opening ---------------------------------------------------------------------------------

    def open(self) -> None:
        self._open()
        self._stays_open = True

    def _open(self) -> None:
        if self._attributes is not None:
            return
        self.path = self.path.absolute()
        if self.mode != "r":
            check_parts(self.path)
        exists = has_store(self._own)
        if self.mode != "r" and self._write_lock is None and self._own.is_dir():
            self._write_lock = WriteLock(self._own)
        try:
            self._open_store(exists)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        lock, self._write_lock = self._write_lock, None
        if lock is not None:
            lock.release()

    def _open_store(self, exists: bool) -> None:
        if self.mode == "r" or (exists and self.mode == "a"):
            attributes = attributes_of(self._own)
            if self.mode != "r":
                self._columns = open_columns(self._own, attributes)
                self._add_missing(attributes)
            self._attributes = attributes
            return
        self._refuse_existing(exists)
        attributes = empty_attributes()
        try:
            if exists:
                empty_store(self._own, attributes_of(self._own))
            else:
                self._own.mkdir(parents=True, exist_ok=True)
                if self._write_lock is None:
                    self._write_lock = WriteLock(self._own)
                put_attributes(self._own, attributes, BEGUN)
                os.replace(self._own / BEGUN, self._own / GROUP)
        except OSError as e:
            raise with_path(self._own, e) from e
        # If the sink is opened again, it appends.
        self.mode = "a"
        self._columns, self._format, self._attributes = {}, None, attributes

    def state(self) -> Any:
        """Numbers of committed systems and atoms, and a checksum of the last system."""
        with self._lock:
            if self._error is not None or self._attributes is not None:
                self._commit()
                assert self._attributes is not None
                return store_state(self._attributes, self._columns)
            self._refuse_existing(exists := has_store(self._own))
            if self.mode == "w" or not exists:
                return None
            attributes = attributes_of(self._own)
            return store_state(attributes, open_columns(self._own, attributes))

    def set_state(self, state: Any) -> None:
        self._refuse_mode_r()
        with self._lock:
            stays_open = self._stays_open
            self.close()
            exists = has_store(self._own)
            if exists and self._own.is_dir():
                self._write_lock = WriteLock(self._own)
            try:
                if state is None and exists:
                    remove_store(self._own)
                elif state is not None and (exists or state["systems"]):
                    cut_store(self._own, state)
            except Exception as e:
                raise with_path(self._own, e) from None
            finally:
                self._release()
            self.mode = "a"
            if stays_open:
                self.open()

    def close(self) -> None:
        """Commit what was written.

        Raises:
            OSError: naming the path, if that fails.
        """
        with self._lock:
            try:
                self._commit()
            finally:
                self._forget()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._attributes, self._columns, self._error = None, None, {}, None
        self._waiting, self._waiting_bytes, self._format = [], 0, None
        self._stays_open = False
        self._release()

    # -- writing ---------------------------------------------------------------------------------

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = None if mask is None else systems_mask(batch, mask)
        if not (which if which is not None else systems_mask(batch)).any():
            return
        self._refuse_mode_r()
        host = batch.to_host(which)
        with self._lock:
            if self._error is not None:
                self._commit()
            self._open()
            try:
                self._queue(host)
                if not self._stays_open:
                    self._commit()
                elif self._timer is None:
                    self._timer = threading.Timer(self.commit_seconds, self._commit_later)
                    self._timer.daemon = True
                    self._timer.start()
            finally:
                if not self._stays_open:
                    self._forget()

    def _queue(self, host: HostBatch) -> None:
        """Add systems to those that wait, after a check of their format."""
        attributes = self._attributes
        assert attributes is not None
        new = format_of(host)
        if self._format is None:
            self._format = self._stored_format() if self._columns else new
        check_same_format(self, self._format, new)
        self._texts.of(host)  # What cannot be stored is refused before a part of it is.
        self._waiting.append(host)
        arrays = (host.positions, host.velocities, host.forces, host.cell, *host.atom_extras.values())
        self._waiting_bytes += sum(x.nbytes for x in arrays)
        attributes["frames"] += 1
        attributes["systems"] += len(host.atoms_per_system)
        attributes["atoms"] += len(host.batch_idx)
        if self._waiting_bytes > _WAITING_BYTES:
            try:
                self._flush()
            except Exception as e:
                self._error = with_path(self._own, e)
                raise self._error from None

    def _flush(self) -> None:
        """Append the frames that wait to the columns, all at once."""
        attributes, hosts = self._attributes, self._waiting
        if not hosts:
            return
        assert attributes is not None
        self._waiting, self._waiting_bytes = [], 0
        arrays, levels = self._texts.arrays(
            hosts, attributes["frames"] - len(hosts), attributes["meta_bytes"]
        )
        if not self._columns:
            self._create(arrays, levels, hosts[0])
        for name, rows in arrays.items():
            self._columns[name].append(rows)
        attributes["meta_bytes"] = int(arrays["meta_end"][-1])

    def commit(self) -> None:
        """Write everything to disk now, so that it is not lost if the process is killed."""
        with self._lock:
            self._commit()

    def _commit_later(self) -> None:
        """In the thread of the timer: errors are raised by the next write, or by close."""
        with self._lock:
            self._timer = None
            try:
                self._commit()
            except Exception as e:
                self._error = e

    def _commit(self) -> None:
        """Write all rows, then the counts that make them valid."""
        error, self._error = self._error, None
        if error is not None:
            # Further writes after a failure could leave a gap.
            self._forget()
            raise error
        if self._attributes is None or self.mode == "r":
            return
        try:
            self._flush()
            for column in self._columns.values():
                column.commit()
            put_attributes(self._own, self._attributes)
        except Exception as e:
            self._forget()
            raise with_path(self._own, e) from None

    def _create(
        self, arrays: dict[str, Shaped[np.ndarray, "rows ..."]], levels: dict[str, str], host: HostBatch
    ) -> None:
        attributes = self._attributes
        assert attributes is not None
        for name, rows in arrays.items():
            self._make_column(name, rows, levels[name])
        attributes["columns"] = levels
        attributes["extras"] = {"atom": sorted(host.atom_extras), "system": sorted(host.system_extras)}

    def _add_missing(self, attributes: dict[str, Any]) -> None:
        """Add columns for fields that a store of an earlier version lacks; valid from the next commit on."""
        if not self._columns or attributes["columns"].keys() >= STORED:
            return
        stored = StoredSystems(self._own)
        for name in sorted(STORED - attributes["columns"].keys()):
            level, array, length = stored.field(name)
            rows = np.asarray(array[:length])
            self._make_column(name, rows, level)
            self._columns[name].append(rows)
            attributes["columns"][name] = level

    def _make_column(self, name: str, rows: Shaped[np.ndarray, "rows ..."], level: str) -> None:
        folder = self._own / name
        if folder.exists():
            # From a first write that was never committed.
            shutil.rmtree(folder)
        labels = Labels.of(name, level, rows.ndim)
        self._columns[name] = Column.like(
            folder, rows, self.chunk_bytes, self.compression, self.shard_bytes, labels
        )

    def _stored_format(self) -> Format:
        assert self._attributes is not None
        extras = {}
        for level, keys in self._attributes["extras"].items():
            for key in keys:
                column = self._columns[array_name(level, key)]
                extras |= [extra_format(level, key, column.dtype, column.row)]
        return self._columns["positions"].dtype, extras

    # -- reading ---------------------------------------------------------------------------------

    def read(self) -> HostBatch:
        """All systems, in the order in which they were written; the parts of several processes as one.

        Raises:
            ValueError: if there are no systems, or the path does not exist.
        """
        with self._lock:
            if self._attributes is not None:
                self._commit()
        if (stored := open_stored(self.path)).n_systems == 0:
            raise ValueError(f"{self.path} is empty: nothing was written to it.")
        return stored.batch(np.arange(stored.n_systems))

    def zero(self) -> None:
        """Remove all systems; frames are counted from 0 again."""
        self._refuse_mode_r()
        with self._lock:
            stays_open = self._stays_open
            if self._attributes is None and has_store(self._own):
                self._open()
            self._forget()
            if has_store(self._own):
                # If an error follows, there must be no systems rather than some of them.
                self.mode = "w"
                self._open()
            if not stays_open:
                self._forget()
            self._stays_open = stays_open

    def __len__(self) -> int:
        if self._attributes is not None:
            return int(self._attributes["systems"])
        return sum(attributes_of(part)["systems"] for part in part_paths(self.path) if has_store(part))
