"""What ZarrData stores, by name: levels, dimensions and units of arrays, and the JSON of what is no array."""

import dataclasses
import json
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Shaped

from alchemi_jax.io.encoding import (
    decode_constraints,
    decode_info,
    encode_constraints,
    encode_info,
)
from alchemi_jax.systems.atoms import KEPT_ARRAYS
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.systems.metadata import SystemMeta


FORMAT = "alchemi_jax systems"
#: Version 5 has checksums of chunks and metadata. Stores of version 4 are read and continued as they are.
VERSION, READABLE = 5, (4, 5)
#: Fields that are not stored, since they follow from the numbers of atoms.
DERIVED = ("batch_idx", "first_atom")
#: Fields that every store of this version has.
STORED = {name for name, _ in level_fields(HostBatch) if name not in DERIVED and not name.endswith("_extras")}

#: Dimensions of the arrays after the first. No name twice in one array, and one size per name: for xarray.
_DIMENSIONS = {
    **dict.fromkeys(("positions", "velocities", "forces", "fixed_components"), ("xyz",)),
    "cell": ("vector", "xyz"),
    "pbc": ("vector",),
    "stress": ("stress_row", "stress_column"),
}
_UNITS = {
    **dict.fromkeys(("positions", "cell"), "angstrom"),
    "velocities": "angstrom / fs",
    "masses": "amu",
    "charge": "e",
    "energy": "eV",
    "forces": "eV / angstrom",
    "stress": "eV / angstrom^3",
    "time": "fs",
    "target_temperature": "K",
    "target_pressure": "GPa",
}


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names that others need to read an array: of its dimensions, and of its unit, if it has one."""

    dimensions: tuple[str, ...]
    unit: str | None

    @classmethod
    def of(cls, name: str, level: str, ndim: int) -> "Labels":
        """Those of an array of the store."""
        first = {"meta": "byte"}.get(level, level)
        known = _DIMENSIONS.get(name, ())
        if len(known) != ndim - 1:
            known = tuple(f"{name}_{axis}" for axis in range(1, ndim))
        return cls((first, *known), _UNITS.get(name))


def array_name(level: str, key: str) -> str:
    """The name of the array of an extra, with characters quoted that are special in paths."""
    return f"{level}_extra.{quote(key, safe='')}"


def flat_fields(host: HostBatch) -> dict[str, tuple[str, Shaped[np.ndarray, "..."]]]:
    """Level and array of each field, by the names in the group."""
    out: dict[str, tuple[str, Shaped[np.ndarray, "..."]]] = {}
    for name, level in level_fields(host):
        value = getattr(host, name)
        if name.endswith("_extras"):
            out |= {array_name(level, k): (level, np.asarray(v)) for k, v in value.items()}
        elif name not in DERIVED:
            out[name] = (level, np.asarray(value))
    return out


def meta_text(meta: SystemMeta) -> bytes:
    """Name, `info` and constraints of a system as JSON.

    Raises:
        ValueError: for a constraint that has no form in JSON.
    """
    content = {
        "name": meta.name,
        "info": encode_info(meta.info, meta.name, stacklevel=10),
        "constraints": encode_constraints(meta.constraints, meta.name),
    }
    return json.dumps(content | ({"reason": meta.reason} if meta.reason else {})).encode()


class Texts:
    """The JSON of systems, made once for all frames of a run."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[SystemMeta, bytes]] = {}

    def of(self, host: HostBatch) -> list[bytes]:
        """The JSON of each system.

        Raises:
            ValueError: for a constraint that has no form in JSON.
        """
        texts = []
        for i in range(len(host.atoms_per_system)):
            texts.append(self._of_meta(host.meta[i]) if host.meta else meta_text(SystemMeta(f"system {i}")))
        return texts

    def _of_meta(self, meta: SystemMeta) -> bytes:
        known = self._known.get(id(meta))
        if known is None or known[0] is not meta:
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[id(meta)] = (meta, meta_text(meta))
        return known[1]

    def arrays(
        self, hosts: list[HostBatch], frame: int, meta_bytes: int
    ) -> tuple[dict[str, Shaped[np.ndarray, "rows ..."]], dict[str, str]]:
        """Rows of all arrays, and the levels of these.

        Args:
            hosts: one per frame.
            frame, meta_bytes: number of frames, and bytes of JSON, that the store has.
        """
        flat = [flat_fields(host) for host in hosts]
        levels = {name: level for name, (level, _) in flat[0].items()}
        levels |= {"frame": "system", "meta_end": "system", "meta": "meta"}
        arrays = {name: np.concatenate([f[name][1] for f in flat]) for name in flat[0]}
        sizes = [len(host.atoms_per_system) for host in hosts]
        arrays["frame"] = np.repeat(np.arange(frame, frame + len(hosts), dtype=np.int32), sizes)
        texts = [text for host in hosts for text in self.of(host)]
        arrays["meta_end"] = meta_bytes + np.cumsum([len(t) for t in texts], dtype=np.int64)
        arrays["meta"] = np.frombuffer(b"".join(texts), np.uint8)
        return arrays, levels


def meta_from_text(text: bytes) -> SystemMeta:
    """The inverse of `meta_text`, also of what version 4 wrote."""
    entry: Any = json.loads(text)
    name = entry["name"]
    if isinstance(entry["info"], dict):
        info, constraints = _from_version_4(entry, name)
    else:
        info = decode_info(entry["info"], name)
        constraints = decode_constraints(entry["constraints"], name)
    return SystemMeta(name, info, constraints, entry.get("reason", ""))


def _from_version_4(entry: dict[str, Any], name: str) -> tuple[dict[str, Any], tuple]:
    """`info` and constraints in the JSON of ASE; an entry that it cannot decode is kept as it is stored."""
    from ase.io import jsonio

    info = {}
    for key, value in entry["info"].items():
        try:
            info[key] = jsonio.decode(json.dumps(value))
        except Exception:
            info[key] = value
    if isinstance(kept := info.pop("_arrays", None), dict):
        info[KEPT_ARRAYS] = kept
    stored = [jsonio.decode(json.dumps(c)) for c in entry["constraints"]]
    return info, decode_constraints(stored, name)
