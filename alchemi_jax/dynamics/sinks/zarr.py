"""ZarrData: systems on disk, in one zarr group.

Systems of any sizes stand one after another: fields per atom are flat arrays over the atoms of all
systems, fields per system have one row a system, and `first_atom` with `atoms_per_system` says
where a system's atoms are. Name, `info` and constraints of each system are JSON in `meta`, cut by
`meta_end`. A write appends to every array and at last sets the counts in the group's attributes:
what is beyond them does not count, so that a store is whole after every write, and after a crash in one.
"""

import json
import os
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
from alchemi_jax.levels import level_fields


FORMAT = "alchemi_jax systems"
VERSION = 1
_CHUNK_BYTES = 1 << 20
#: Not stored: they follow from the counts.
_DERIVED = ("batch_idx", "first_atom")


class ZarrData(Sink):
    """A zarr v3 group of systems; see the module's text for its layout.

    Args:
        path: a directory, made when the first system is written or a run opens the sink.
        mode: "a" goes on with a store that exists, "w" starts it anew, "x" refuses one that exists,
            "r" only reads.

    Raises:
        ValueError: if the path holds something else, or systems of another dtype or other extras.
        FileExistsError, PermissionError and other OSErrors: naming the path.
    """

    def __init__(self, path: str | os.PathLike, mode: str = "a"):
        if mode not in ("a", "w", "x", "r"):
            raise ValueError(f"mode of ZarrData must be 'a', 'w', 'x' or 'r', not {mode!r}.")
        self.path = Path(path)
        self.mode = mode
        self._group: zarr.Group | None = None

    def __repr__(self) -> str:
        return f"ZarrData({str(self.path)!r})"

    # -- opening ---------------------------------------------------------------------------------

    def open(self) -> None:
        if self._group is not None:
            return
        exists = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if self.mode == "r" or (exists and self.mode == "a"):
            self._group = self._existing()
            return
        if exists and self.mode == "x":
            raise FileExistsError(f"{self.path} exists: give another path, or mode='w' or 'a'.")
        if exists:
            self._existing()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(self.path, mode="w", zarr_format=3)
            group.attrs.update({"format": FORMAT, "version": VERSION, "systems": 0, "atoms": 0})
        except OSError as e:
            raise type(e)(f"{self.path} cannot be written: {e.strerror or e}.") from e
        # Whatever opens the sink again goes on with what was written.
        self.mode = "a"
        self._group = group

    def _existing(self) -> zarr.Group:
        if not self.path.exists():
            raise ValueError(f"{self.path} does not exist.")
        try:
            if not self.path.is_dir():
                raise ValueError
            group = zarr.open_group(self.path, mode="r" if self.mode == "r" else "r+")
        except (FileNotFoundError, ValueError, KeyError):
            raise ValueError(f"{self.path} is not a zarr group.") from None
        if group.attrs.get("format") != FORMAT:
            raise ValueError(f"{self.path} is a zarr group, but not one that ZarrData wrote.")
        version = group.attrs.get("version")
        if version != VERSION:
            raise ValueError(f"{self.path} has version {version}, this ZarrData reads {VERSION}.")
        return group

    def close(self) -> None:
        self._group = None

    # -- writing ---------------------------------------------------------------------------------

    def write(self, batch: Batch, mask: Any = None) -> None:
        if mask is not None and not np.any(mask):
            return
        if self.mode == "r":
            raise ValueError(f"{self.path} was opened to read, mode 'r'.")
        self.open()
        group = self._group
        assert group is not None
        host = batch.take(mask)
        atoms, systems = _flat(host)
        counts: dict[str, Any] = dict(group.attrs)
        n_systems, n_atoms, n_meta = (int(counts.get(k, 0)) for k in ("systems", "atoms", "meta_bytes"))
        systems["first_atom"] = n_atoms + np.asarray(host.first_atom, np.int64)
        texts = [_dump(host, i) for i in range(host.num_systems)]
        systems["meta_end"] = n_meta + np.cumsum([len(t) for t in texts], dtype=np.int64)
        text = np.frombuffer(b"".join(texts), np.uint8)

        names = sorted([*atoms, *systems])
        if n_systems == 0:
            self._create(group, {**atoms, **systems, "meta": text})
            group.attrs["extras"] = {
                "atom": sorted(host.atom_extras),
                "system": sorted(host.system_extras),
            }
        else:
            self._check(group, names, atoms["positions"].dtype)
        for name, rows in atoms.items():
            _append(group, name, n_atoms, rows)
        for name, rows in systems.items():
            _append(group, name, n_systems, rows)
        _append(group, "meta", n_meta, text)
        group.attrs.update(
            {
                "systems": n_systems + len(texts),
                "atoms": n_atoms + len(atoms["positions"]),
                "meta_bytes": n_meta + len(text),
            }
        )

    def _create(self, group: zarr.Group, arrays: dict[str, np.ndarray]) -> None:
        for name, rows in arrays.items():
            per_row = max(rows.dtype.itemsize * int(np.prod(rows.shape[1:])), 1)
            group.create_array(
                name,
                shape=(0, *rows.shape[1:]),
                chunks=(max(_CHUNK_BYTES // per_row, 1), *(max(n, 1) for n in rows.shape[1:])),
                dtype=rows.dtype,
                overwrite=True,
            )

    def _check(self, group: zarr.Group, names: list[str], dtype: np.dtype) -> None:
        held = sorted(name for name in group.array_keys() if name != "meta")
        if held != names:
            odd = ", ".join(sorted(set(held) ^ set(names)))
            raise ValueError(f"{self.path} holds systems with other fields than the new ones: {odd}.")
        stored = _array(group, "positions").dtype
        if stored != dtype:
            raise ValueError(
                f"{self.path} holds {stored} systems, the new ones are {dtype}: use another path."
            )

    # -- reading ---------------------------------------------------------------------------------

    def read(self) -> Batch:
        """All systems, in the order in which they were written.

        Raises:
            ValueError: if there are none, or the path does not exist.
        """
        group = self._group if self._group is not None else self._existing()
        counts: dict[str, Any] = dict(group.attrs)
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
        if self._group is not None:
            return int(self._group.attrs["systems"])  # pyright: ignore
        return int(self._existing().attrs["systems"]) if self.path.exists() else 0  # pyright: ignore


def _name(level: str, key: str) -> str:
    """An extra's array; the key may hold characters that mean something in a path."""
    return f"{level}_extra.{quote(key, safe='')}"


def _array(group: zarr.Group, name: str) -> Any:
    return group[name]


def _append(group: zarr.Group, name: str, at: int, rows: np.ndarray) -> None:
    array = _array(group, name)
    array.resize((at + len(rows), *rows.shape[1:]))
    array[at:] = rows


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


def _dump(host: Batch, system: int) -> bytes:
    meta = host.meta[system] if host.meta is not None else SystemMeta(f"system {system}")
    info = {}
    for key, value in meta.info.items():
        try:
            info[key] = json.loads(jsonio.encode(value))
        except TypeError:
            warnings.warn(
                f"{meta.name}: info[{key!r}] is a {type(value).__name__}, which JSON does not hold; "
                "its text is stored.",
                stacklevel=5,
            )
            info[key] = str(value)
    constraints = [json.loads(jsonio.encode(c.todict())) for c in meta.constraints]
    return json.dumps({"name": meta.name, "info": info, "constraints": constraints}).encode()


def _load(text: bytes) -> SystemMeta:
    entry: Any = jsonio.decode(text.decode())
    constraints = tuple(dict2constraint(c) for c in entry["constraints"])
    return SystemMeta(entry["name"], entry["info"], constraints)
