"""Systems that left a refilled run without steps: their states on disk, from which they go on if a later call
gives more steps.

Each time that systems leave, those that are out of steps are one file of arrays. A checkpoint has a checksum
of each file; files that a killed run wrote after it are written again.
"""

import io
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.resume import ended_by_budget, reopen
from alchemi_jax.dynamics.saved import is_key, named_leaves, plain
from alchemi_jax.dynamics.state import FLAGS, DynamicsState
from alchemi_jax.io.cut import ADVICE
from alchemi_jax.io.sinks.layout import meta_from_text, meta_text
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import atom_rows, map_by_level, unsafe_replace
from alchemi_jax.systems.metadata import Metadata
from alchemi_jax.systems.outcome import Outcome


#: Of a neighbor list: what each system has, by level.
_REFERENCES = {"ref_positions": "atom"} | dict.fromkeys(
    ("ref_cell", "ref_inverse", "ref_pbc", "ref_id"), "system"
)
_LAYOUT = ("batch_idx", "first_atom", "atoms_per_system")


class Rows(NamedTuple):
    """Some systems of a run, without padding, as numpy arrays: their state, the references of their lists."""

    state: DynamicsState
    references: dict[str, np.ndarray]

    @property
    def sizes(self) -> Int[np.ndarray, " systems"]:
        """Number of atoms of each."""
        return np.asarray(self.state.batch.atoms_per_system)

    def host(self) -> HostBatch:
        """The systems, with names."""
        return self.state.batch.to_host(meta=self.state.batch.meta)


def take(state: DynamicsState, references: Any, chosen: Int[np.ndarray, " chosen"], meta: Metadata) -> Rows:
    """The rows of some systems of a state.

    Args:
        references: of the neighbor list, None if there is none.
        meta: names of all systems of the state.
    """
    sizes = np.asarray(state.batch.atoms_per_system)[chosen]
    atoms = atom_rows(np.asarray(state.batch.first_atom)[chosen], sizes)
    index = {"system": chosen, "atom": atoms}

    def rows(level: str, x: Any) -> Any:
        if level == "shared":
            return x
        return x[index[level]] if is_key(x) else np.asarray(x)[index[level]]

    slim = unsafe_replace(state, neighbors=None, records=())
    slim = map_by_level(rows, slim)
    layout = {
        "batch_idx": np.repeat(np.arange(len(chosen), dtype=np.int32), sizes),
        "first_atom": (np.cumsum(sizes) - sizes).astype(np.int32),
    }
    batch = unsafe_replace(slim.batch, **layout, meta=meta.of_rows(chosen))
    flags = {name: np.asarray(getattr(state, name))[chosen] for name in FLAGS}
    references = {} if references is None else references
    kept = {name: np.asarray(references[name])[index[level]] for name, level in _of(references)}
    return Rows(unsafe_replace(slim, batch=batch, **flags), kept)


def put(state: DynamicsState, new: Rows, system: int, atom: int) -> DynamicsState:
    """The state with these systems in the rows from `system` and `atom` on, where there is room for them."""
    n, m = len(new.sizes), int(new.sizes.sum())
    index = {"system": slice(system, system + n), "atom": slice(atom, atom + m)}

    def rows(level: str, old: Any, x: Any) -> Any:
        if level == "shared":
            return old
        if is_key(old):
            return old.at[index[level]].set(x)
        out = np.array(old)
        out[index[level]] = np.asarray(x)
        return out

    slim = unsafe_replace(state, neighbors=None, records=())
    after = map_by_level(rows, slim, new.state)
    layout = {name: getattr(state.batch, name) for name in _LAYOUT}
    batch = unsafe_replace(after.batch, **layout, largest=state.batch.largest, meta=state.batch.meta)
    flags = {name: rows("system", getattr(state, name), getattr(new.state, name)) for name in FLAGS}
    lists = state.neighbors
    if lists is not None:
        kept = {
            name: rows(level, getattr(lists, name), new.references[name])
            for name, level in _REFERENCES.items()
        }
        lists = nl.resized(unsafe_replace(lists, **kept), lists.sizes)
    after = unsafe_replace(after, batch=batch, **flags)
    return unsafe_replace(jax.device_put(after), neighbors=lists, records=state.records)


def _of(references: Any) -> list[tuple[str, str]]:
    return [(name, level) for name, level in _REFERENCES.items() if len(references)]


class OutOfSteps:
    """The states of systems that are out of steps.

    Args:
        folder: of the files. sums: checksums of the valid files, which are numbered from 0.
    """

    def __init__(self, folder: Path, sums: Iterable[int] = ()):
        self.folder, self.sums = folder, list(sums)
        #: Those that go on, in the order in which they left.
        self.waiting: list[Rows] = []

    def write(self, engine: Engine, state: DynamicsState, rows: Bool[np.ndarray, " systems"]) -> None:
        """Write those of some systems of a state, with names, that are out of steps.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        chosen = np.flatnonzero(rows & ended_by_budget(engine, state)[: len(rows)])
        if not len(chosen):
            return
        lists = state.neighbors
        references = None if lists is None else {name: getattr(lists, name) for name in _REFERENCES}
        found = take(state, references, chosen, state.batch.meta)
        arrays: dict[str, Any] = {name: np.asarray(plain(x)) for name, x in named_leaves(found.state)}
        arrays |= {f".neighbors.{name}": x for name, x in found.references.items()}
        arrays["names"] = np.array([meta_text(meta).decode() for meta in found.state.batch.meta])
        content = io.BytesIO()
        np.savez(content, **arrays)
        path = self.folder / f"{len(self.sums)}.npz"
        try:
            self.folder.mkdir(exist_ok=True)
            path.write_bytes(content.getbuffer())
        except OSError as e:
            raise OSError(e.errno, f"it cannot be written: {e.strerror or e}", str(path)) from e
        self.sums.append(zlib.crc32(content.getbuffer()))

    def find(self, engine: Engine, like: DynamicsState, where: str, in_flight: Int[np.ndarray, " n"]) -> None:
        """Look for systems that go on with the present budget of steps.

        Args:
            like: a state of the run, for the structure.
            where: the checkpoint, for messages.
            in_flight: ids of systems in the batch.

        Raises:
            ValueError: naming the file, if one is missing or is not what was written.
        """
        files = [self._read(number, like) for number in range(len(self.sums))]
        # A system may have been out of steps several times: the last one counts.
        ids = [np.asarray(file.state.batch.system_id).tolist() for file in files]
        last = {i: number for number, of_file in enumerate(ids) for i in of_file}
        self.waiting = []
        for number, file in enumerate(files):
            state = reopen(engine, file.state, where)
            goes = np.asarray(state.batch.outcome) == Outcome.RUNNING
            goes &= np.array([last[i] == number for i in ids[number]]) & ~np.isin(ids[number], in_flight)
            for row in np.flatnonzero(goes):
                references = file.references or None
                self.waiting.append(take(state, references, np.array([row]), state.batch.meta))

    def next(self, systems: int, atoms: int) -> Rows | None:
        """The next system that goes on, if it fits into this room."""
        fits = self.waiting and systems >= 1 and int(self.waiting[0].sizes.sum()) <= atoms
        return self.waiting.pop(0) if fits else None

    def _content(self, number: int) -> bytes:
        """A file as it was written."""
        path = self.folder / f"{number}.npz"
        try:
            content = path.read_bytes()
        except OSError as e:
            raise ValueError(
                f"{path}, with systems that were out of steps, cannot be read: {e.strerror}: {ADVICE}."
            ) from None
        if zlib.crc32(content) != self.sums[number]:
            raise ValueError(
                f"{path}, with systems that were out of steps, is not what was written: {ADVICE}."
            )
        return content

    def _read(self, number: int, like: DynamicsState) -> Rows:
        with np.load(io.BytesIO(self._content(number)), allow_pickle=False) as file:
            arrays = dict(file)
        slim = unsafe_replace(like, neighbors=None, records=())
        leaves = []
        for name, leaf in named_leaves(slim):
            value = arrays[name]
            if is_key(leaf):
                value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
            leaves.append(value)
        state = jax.tree.unflatten(jax.tree.structure(slim), leaves)
        meta = Metadata(meta_from_text(text.encode()) for text in arrays["names"].tolist())
        state = unsafe_replace(state, batch=unsafe_replace(state.batch, meta=meta))
        names = [name for name in _REFERENCES if f".neighbors.{name}" in arrays]
        return Rows(state, {name: arrays[f".neighbors.{name}"] for name in names})


__all__ = ["OutOfSteps", "Rows", "put", "take"]
