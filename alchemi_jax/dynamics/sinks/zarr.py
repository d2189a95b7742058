"""ZarrData: systems on disk, in one zarr group.

Systems of any sizes stand one after another: fields per atom are flat arrays over the atoms of all
systems, fields per system have one row a system, and `first_atom` with `atoms_per_system` says
where a system's atoms are. Name, `info` and constraints of each system are JSON in `meta`, cut by
`meta_end`. A commit writes every array and at last the counts in the group's attributes: what is beyond
them does not count, so that a store is whole after every commit, and after a crash in one.
"""

import json
import os
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from ase.constraints import dict2constraint
from ase.io import jsonio

from alchemi_jax.batch import Batch, Metadata, SystemMeta
from alchemi_jax.dynamics.sinks.base import Sink
from alchemi_jax.dynamics.sinks.columns import Column, put_json
from alchemi_jax.levels import level_fields


FORMAT = "alchemi_jax systems"
VERSION = 2
#: Not stored: they follow from the counts.
_DERIVED = ("batch_idx", "first_atom")
_GROUP_BYTES = 4096


class ZarrData(Sink):
    """A zarr v3 group of systems; see the module's text for its layout.

    While a run holds the sink open, what is written is committed about every second and at the end; a process
    that is killed loses no more than that. Without an opening each write is committed at once.

    Args:
        path: a directory, made when the first system is written or a run opens the sink.
        mode: "a" goes on with a store that exists, "w" starts it anew, "x" refuses one that exists,
            "r" only reads.
        chunk_bytes: of a chunk; by default twice the first write, from 256 KiB to 8 MiB.
        compression: level of zstd, 0 being its own default; None: none. Both of a new store.

    Raises:
        ValueError: if the path holds something else, or systems of another dtype or other extras.
        FileExistsError, PermissionError and other OSErrors: naming the path.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        mode: str = "a",
        *,
        chunk_bytes: int | None = None,
        compression: int | None = 0,
    ):
        if mode not in ("a", "w", "x", "r"):
            raise ValueError(f"mode of ZarrData must be 'a', 'w', 'x' or 'r', not {mode!r}.")
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ValueError(f"chunk_bytes of ZarrData must be positive, not {chunk_bytes}.")
        self.path = Path(path)
        self.mode = mode
        self.chunk_bytes, self.compression = chunk_bytes, compression
        self.commit_seconds = 1.0
        self._attributes: dict[str, Any] | None = None
        self._columns: dict[str, Column] = {}
        self._texts: dict[int, tuple[SystemMeta, bytes]] = {}
        self._held_open = False
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        return f"ZarrData({str(self.path)!r})"

    # -- opening ---------------------------------------------------------------------------------

    def open(self) -> None:
        self._open()
        self._held_open = True

    def _open(self) -> None:
        if self._attributes is not None:
            return
        exists = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if self.mode == "r" or (exists and self.mode == "a"):
            attributes = self._existing()
            atoms, systems = attributes["atoms"], attributes["systems"]
            lengths = {"atom": atoms, "system": systems, "meta": attributes["meta_bytes"]}
            if self.mode != "r" and systems:
                columns = attributes["columns"].items()
                self._columns = {n: Column.existing(self.path / n, lengths[of]) for n, of in columns}
            self._attributes = attributes
            return
        if exists and self.mode == "x":
            raise FileExistsError(f"{self.path} exists: give another path, or mode='w' or 'a'.")
        attributes = {"format": FORMAT, "version": VERSION, "systems": 0, "atoms": 0, "meta_bytes": 0}
        try:
            if exists:
                self._existing()
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            self._put_attributes(attributes)
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        # Whatever opens the sink again goes on with what was written.
        self.mode = "a"
        self._columns = {}
        self._attributes = attributes

    def _existing(self) -> dict[str, Any]:
        """The attributes of the store."""
        if not self.path.exists():
            raise ValueError(f"{self.path} does not exist.")
        try:
            group = json.loads((self.path / "zarr.json").read_text())
            if group["node_type"] != "group":
                raise ValueError
        except (OSError, ValueError, KeyError):
            raise ValueError(f"{self.path} is not a zarr group.") from None
        attributes = group.get("attributes", {})
        if attributes.get("format") != FORMAT:
            raise ValueError(f"{self.path} is a zarr group, but not one that ZarrData wrote.")
        version = attributes.get("version")
        if version != VERSION:
            raise ValueError(f"{self.path} has version {version}, this ZarrData reads {VERSION}.")
        return attributes

    def _put_attributes(self, attributes: dict[str, Any]) -> None:
        content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        put_json(self.path / "zarr.json", content, _GROUP_BYTES)

    def close(self) -> None:
        """Commits what was written.

        Raises:
            OSError: if it cannot be, naming the path.
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
        self._held_open = False

    # -- writing ---------------------------------------------------------------------------------

    def write(self, batch: Batch, mask: Any = None) -> None:
        if mask is not None and not np.any(mask):
            return
        if self.mode == "r":
            raise ValueError(f"{self.path} was opened to read, mode 'r'.")
        host = batch.take(mask)
        with self._lock:
            if self._error is not None:
                self._commit()
            self._open()
            try:
                self._append(host)
                if not self._held_open:
                    self._commit()
                elif self._timer is None:
                    self._timer = threading.Timer(self.commit_seconds, self._commit_later)
                    self._timer.daemon = True
                    self._timer.start()
            finally:
                if not self._held_open:
                    self._forget()

    def _append(self, host: Batch) -> None:
        attributes = self._attributes
        assert attributes is not None
        atoms, systems = _flat(host)
        texts = [self._text(host, i) for i in range(host.num_systems)]
        systems["first_atom"] = attributes["atoms"] + np.asarray(host.first_atom, np.int64)
        systems["meta_end"] = attributes["meta_bytes"] + np.cumsum([len(t) for t in texts], dtype=np.int64)
        arrays = {**atoms, **systems, "meta": np.frombuffer(b"".join(texts), np.uint8)}
        try:
            if self._columns:
                self._check(sorted(arrays), atoms["positions"].dtype)
            else:
                self._create(arrays, host, set(atoms))
            for name, rows in arrays.items():
                self._columns[name].append(rows)
        except OSError as e:
            self._error = e
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        attributes["systems"] += len(texts)
        attributes["atoms"] += len(atoms["positions"])
        attributes["meta_bytes"] += len(arrays["meta"])

    def _commit_later(self) -> None:
        """In the timer's thread: what goes wrong is raised by the next write, or by close."""
        with self._lock:
            self._timer = None
            try:
                self._commit()
            except OSError as e:
                self._error = e

    def _commit(self) -> None:
        """All rows, then the counts that make them valid."""
        error, self._error = self._error, None
        if error is not None:
            # What comes after a failure could leave a hole.
            self._forget()
            raise type(error)(f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}.")
        if self._attributes is None or self.mode == "r":
            return
        try:
            for column in self._columns.values():
                column.commit()
            self._put_attributes(self._attributes)
        except OSError as e:
            self._forget()
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e

    def _create(self, arrays: dict[str, np.ndarray], host: Batch, atoms: set[str]) -> None:
        attributes = self._attributes
        assert attributes is not None
        for name, rows in arrays.items():
            folder = self.path / name
            if folder.exists():
                # Of a first write that was never committed.
                shutil.rmtree(folder)
            self._columns[name] = Column.like(folder, rows, self.chunk_bytes, self.compression)
        attributes["columns"] = {
            name: "meta" if name == "meta" else "atom" if name in atoms else "system" for name in arrays
        }
        attributes["extras"] = {"atom": sorted(host.atom_extras), "system": sorted(host.system_extras)}

    def _check(self, names: list[str], dtype: np.dtype) -> None:
        held = sorted(self._columns)
        if held != names:
            odd = ", ".join(sorted(set(held) ^ set(names)))
            raise ValueError(f"{self.path} holds systems with other fields than the new ones: {odd}.")
        stored = self._columns["positions"].dtype
        if stored != dtype:
            raise ValueError(
                f"{self.path} holds {stored} systems, the new ones are {dtype}: use another path."
            )

    def _text(self, host: Batch, system: int) -> bytes:
        """What JSON holds of a system; frames of one batch have the same, made once."""
        meta = host.meta[system] if host.meta is not None else None
        if meta is None:
            return _dump(SystemMeta(f"system {system}"))
        known = self._texts.get(id(meta))
        if known is None or known[0] is not meta:
            if len(self._texts) > 10_000:
                self._texts.clear()
            known = self._texts[id(meta)] = (meta, _dump(meta))
        return known[1]

    # -- reading ---------------------------------------------------------------------------------

    def read(self) -> Batch:
        """All systems, in the order in which they were written.

        Raises:
            ValueError: if there are none, or the path does not exist.
        """
        with self._lock:
            if self._attributes is not None:
                self._commit()
            counts = self._existing()
        group = zarr.open_group(self.path, mode="r")
        n_systems, n_atoms = int(counts["systems"]), int(counts["atoms"])
        if n_systems == 0:
            raise ValueError(f"{self.path} is empty: nothing was written to it.")
        fields: dict[str, Any] = {}
        for name, level in level_fields(Batch):
            n = n_atoms if level == "atom" else n_systems
            if name.endswith("_extras"):
                keys = counts["extras"][level]
                fields[name] = {k: _array(group, _name(level, k))[:n] for k in keys}
            elif name not in _DERIVED:
                fields[name] = _array(group, name)[:n]
        text = np.asarray(_array(group, "meta")[: int(counts["meta_bytes"])]).tobytes()
        ends = np.asarray(_array(group, "meta_end")[:n_systems]).tolist()
        starts = [0, *ends[:-1]]
        meta = Metadata(_load(text[a:b]) for a, b in zip(starts, ends, strict=True))
        return Batch.from_fields(fields, meta)

    def __len__(self) -> int:
        if self._attributes is not None:
            return int(self._attributes["systems"])
        return int(self._existing()["systems"]) if self.path.exists() else 0


def _name(level: str, key: str) -> str:
    """An extra's array; the key may hold characters that mean something in a path."""
    return f"{level}_extra.{quote(key, safe='')}"


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def _flat(host: Batch) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays per atom and per system, by the names they have in the group."""
    out: dict[str, dict[str, np.ndarray]] = {"atom": {}, "system": {}}
    for name, level in level_fields(host):
        value = getattr(host, name)
        if name.endswith("_extras"):
            out[level].update({_name(level, k): np.asarray(v) for k, v in value.items()})
        elif name not in _DERIVED:
            out[level][name] = np.asarray(value)
    return out["atom"], out["system"]


def _dump(meta: SystemMeta) -> bytes:
    info = {}
    for key, value in meta.info.items():
        try:
            info[key] = json.loads(jsonio.encode(value))
        except TypeError:
            warnings.warn(
                f"{meta.name}: info[{key!r}] is a {type(value).__name__}, which JSON does not hold; "
                "its text is stored.",
                stacklevel=6,
            )
            info[key] = str(value)
    constraints = [json.loads(jsonio.encode(c.todict())) for c in meta.constraints]
    return json.dumps({"name": meta.name, "info": info, "constraints": constraints}).encode()


def _load(text: bytes) -> SystemMeta:
    entry: Any = jsonio.decode(text.decode())
    constraints = tuple(dict2constraint(c) for c in entry["constraints"])
    return SystemMeta(entry["name"], entry["info"], constraints)
