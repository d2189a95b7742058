"""Sampler: structures from any source, as a stream that fits a batch of fixed size.

Structures are read ahead in another thread, a window at a time, and are kept as one HostBatch; the policy
decides which of them is next. This module does not depend on engines; `refill` uses it.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ase import Atoms
from jaxtyping import Int

from alchemi_jax.errors import public_call
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.io.sinks.stored import StoredSystems
from alchemi_jax.io.sinks.zarr import ZarrData
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import Needs, excess, list_needs
from alchemi_jax.parameters import as_flag, function, natural, number, one_of, optional, system_ids
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.bounds import check_positions
from alchemi_jax.systems.capacity import float_dtype, round_up, sizes_per_octave, widths_per_octave
from alchemi_jax.systems.host import HostBatch, System
from alchemi_jax.systems.levels import unsafe_replace


POLICIES = ("first come", "best fit", "largest first")


class Sampler:
    """The source of the systems of `engine.run(sampler=...)`.

    Args:
        source: structures (ase.Atoms or AtomicData) in a list, a generator or any other iterable; the path
            of a file that ASE reads (an extxyz file is read during the run); a Batch or HostBatch; or a
            sink, such as ZarrData, with what was written to it.
        max_systems: number of systems in flight.
        max_atoms: number of atoms in flight, without padding; by default what `max_systems` systems of mean
            size need, and at least the size of the largest system. The mean is taken over the source if its
            sizes are known, otherwise over the first window.
        max_pairs: pairs within cutoff and skin in flight, estimated from densities: a bound for memory if
            systems differ in density. None: no bound.
        policy: which system is next. "first come": in the order of the source; "best fit": the largest system
            of the window that fits into the room; "largest first": the largest system of the window as soon
            as it fits, which leaves small systems for the end and keeps the device full for longest.
        unfit: "raise", or "skip" with a warning, for a system that is larger than the bounds or that the
            model cannot treat; `skipped` lists them.
        window: number of structures that are read ahead, at least two for each system in flight.
        dtype: dtype of the floats, as in `Batch.from_ase`.
        refill_share: share of the systems in flight that must be finished before others enter; by default the
            one with the least cost, from the numbers of steps that systems take. Results do not depend on it.
        shrink: whether to continue with a batch of half the size when the source is empty and half of the
            systems are finished, and so on, as `engine.run(batch, shrink=True)` does.
        skip: system_ids of systems to leave out, such as those that an earlier run has finished.
        prepare: a function Batch -> Batch that is applied to each window of systems after reading, such as
            `lambda batch: initialize_velocities(batch, 300.0)`.

    The `system_id` of a system is its place in the source, from 0; systems of a Batch keep theirs. Extras
    that all structures of the first window have become arrays, others go into `info`.

    Attributes:
        skipped: (system_id, name, reason) of the systems that the last run left out.
        traffic: statistics of the last run: systems, refills, steps, occupancy, seconds.

    Raises:
        ValueError: naming the argument.
        TypeError: for a source or an entry that is not a structure.
    """

    def __init__(
        self,
        source: Any,
        *,
        max_systems: int = 64,
        max_atoms: int | None = None,
        max_pairs: int | None = None,
        policy: str = "first come",
        unfit: str = "raise",
        window: int = 1024,
        dtype: Any = None,
        refill_share: float | None = None,
        shrink: bool = False,
        skip: Collection[int] = (),
        prepare: Callable[[Batch], Batch] | None = None,
    ):
        self.max_systems = natural("max_systems")(max_systems)
        self.max_atoms = None if max_atoms is None else natural("max_atoms")(max_atoms)
        self.max_pairs = None if max_pairs is None else natural("max_pairs")(max_pairs)
        self.window = max(natural("window")(window), 2 * self.max_systems)
        self.policy = one_of("policy", POLICIES)(policy)
        self.unfit = one_of("unfit", ("raise", "skip"))(unfit)
        if isinstance(source, str | os.PathLike):
            if not Path(source).exists():
                raise ValueError(f"{source} does not exist.")
        elif not isinstance(source, Sink | Iterable) or isinstance(source, Atoms | AtomicData):
            raise TypeError(
                "source of Sampler is an iterable of structures, a path, a Batch or a sink, "
                f"not a {type(source).__name__}."
            )
        self.refill_share = refill_share
        if refill_share is not None and number("refill_share")(refill_share) > 1:
            raise ValueError(f"refill_share must be at most 1, not {refill_share}.")
        self.shrink = as_flag("shrink")(shrink)
        self.skip = frozenset(system_ids("skip")(skip))
        self.prepare = optional(function("prepare"))(prepare)
        float_dtype(dtype)
        self.source, self.dtype = source, dtype
        self.skipped: list[tuple[int, str, str]] = []
        self.traffic: Any = None

    def __repr__(self) -> str:
        source = self.source
        many = f"{len(source)} systems" if isinstance(source, Sized) else repr(source)
        bounds = f"max_systems={self.max_systems}, max_atoms={self.max_atoms}"
        return f"Sampler({many}, {bounds}, policy={self.policy!r})"

    def sizes(self) -> Int[np.ndarray, " systems"] | None:
        """Number of atoms of each system, if it is known without reading the source."""
        if isinstance(self.source, Batch | HostBatch):
            return self.source.to_host().atoms_per_system
        if isinstance(self.source, list | tuple) and self.source:
            return np.array([len(a) if isinstance(a, Sized) else 0 for a in self.source])
        return None

    def chunks(self) -> Iterator[HostBatch]:
        """The source as batches of `window` systems; if it is a batch, as this batch."""
        prepare = self.prepare
        for host in self._batches():
            left = np.isin(host.system_id, list(self.skip), invert=True)
            if left.any():
                yield (host if prepare is None else _prepared(prepare, host)).take(left)

    def _batches(self) -> Iterator[HostBatch]:
        source = self.source
        if isinstance(source, Batch | HostBatch):
            host = source.to_host()
            if len(np.unique(host.system_id)) < len(host):
                raise ValueError(
                    "the system_id of all systems of a Batch must differ, since they identify the systems."
                )
            yield host
            return
        if isinstance(source, ZarrData):
            # Read during the run. Rows that are written meanwhile are not included.
            stored = StoredSystems(source.path) if len(source) else None
            for first in range(0, stored.n_systems if stored else 0, self.window):
                assert stored is not None
                rows = np.arange(first, min(first + self.window, stored.n_systems))
                yield _with_ids(stored.batch(rows), rows)
            return
        if isinstance(source, Sink):
            if len(source):
                host = source.read()
                yield _with_ids(host, np.arange(len(host)))
            return
        entries = enumerate(_structures(source))
        extras = None
        while entry := list(itertools.islice(entries, self.window)):
            data = [read for number, structure in entry if (read := self._read(number, structure))]
            if not data:
                continue
            numbers, systems = zip(*data, strict=True)
            host = HostBatch.from_data_list(systems, self.dtype, extras)
            extras = {*host.atom_extras, *host.system_extras}
            yield _with_ids(host, np.array(numbers))

    def _read(self, number: int, structure: Any) -> tuple[int, AtomicData | System] | None:
        """A structure of the source with its number; None if it is left out because it is not valid."""
        try:
            data = _data(number, structure)
            check_positions(data.name, np.asarray(data.positions), float_dtype(self.dtype))
        except ValueError as e:
            if self.unfit == "raise":
                raise
            reason = str(e).rstrip(".")
            warnings.warn(f"{reason}: it is left out.", RuntimeWarning, stacklevel=8)
            self.skipped.append((number, f"system {number}", reason))
            return None
        return number, data


def _prepared(prepare: Callable[[Batch], Any], host: HostBatch) -> HostBatch:
    batch = prepare(Batch.from_host(host))
    if not isinstance(batch, Batch) or batch.num_systems != len(host):
        raise TypeError(f"prepare must return the Batch that it was given, changed, not {batch!r}.")
    return batch.to_host(meta=host.meta)


def _with_ids(host: HostBatch, ids: Int[np.ndarray, " systems"]) -> HostBatch:
    return unsafe_replace(host, system_id=ids.astype(np.int32))


def _structures(source: Any) -> Iterator[Any]:
    if not isinstance(source, str | os.PathLike):
        yield from source
        return
    import ase.io

    try:
        yield from ase.io.iread(os.fspath(source), ":")
    except Exception as e:
        # The readers of ASE raise exceptions of all types.
        reason = " ".join(str(e).split()) or type(e).__name__
        raise ValueError(f"{source} cannot be read by ASE: {reason}.") from e


def _data(number: int, structure: Any) -> AtomicData | System:
    if isinstance(structure, AtomicData | System):
        return structure
    if isinstance(structure, Atoms):
        return AtomicData.from_ase(structure, f"system {number} ({structure.get_chemical_formula()})")
    raise TypeError(
        f"the source of a Sampler gives ase.Atoms or AtomicData; entry {number} is a "
        f"{type(structure).__name__}."
    )


class Stream:
    """One pass through the source of a sampler: the systems that wait, and which is next.

    `check` raises a ValueError for a batch with a system that cannot be treated.
    """

    def __init__(self, sampler: Sampler, model: AbstractModel, check: Callable[[Batch], None]):
        self.sampler, self.model, self.check = sampler, model, check
        sampler.skipped = []
        self._chunks = sampler.chunks()
        self._reader = ThreadPoolExecutor(1, "alchemi-jax sampler")
        self._x64 = bool(jax.config.jax_enable_x64)  # pyright: ignore
        self._coming: Future | None = self._reader.submit(self._next_chunk)
        #: The systems of the window; their needs, pairs and order; which of them still wait.
        self.waiting: HostBatch | None = None
        self._needs: Needs | None = None
        self._unfit_rows = np.zeros(0, bool)
        self._pairs = self._order = np.zeros(0, int)
        self._left = np.zeros(0, bool)
        self.max_atoms, self.largest = sampler.max_atoms or 0, 0
        sizes = sampler.sizes()
        self._read()
        if self.waiting is None and not sampler.skipped:
            raise ValueError(f"the source of {sampler!r} holds no systems.")
        first = sizes if sizes is not None else self._sizes()
        if len(first):
            if sampler.max_atoms is None:
                enough = int(np.ceil(first.mean() * min(sampler.max_systems, len(first)) * 1.05))
                enough = max(int(first.max()), enough)
                self.max_atoms = round_up(enough, sizes_per_octave(enough), 16)
            self._widen(first)
        self._leave_out()

    def _next_chunk(self) -> HostBatch | None:
        """The next chunk; None at the end. In the thread that reads ahead."""
        # Settings made by `with` hold in the thread that made them alone.
        with jax.enable_x64(self._x64), public_call():
            return next(self._chunks, None)

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Number of systems that were read and wait."""
        return int(self._left.sum())

    @property
    def more(self) -> bool:
        """Whether any system waits, read or not."""
        return len(self) > 0 or self._coming is not None

    def _sizes(self) -> Int[np.ndarray, " systems"]:
        return np.zeros(0, int) if self.waiting is None else self.waiting.atoms_per_system

    def _read(self) -> None:
        """Take the chunk that was read ahead, and start reading the next one."""
        coming = self._coming
        chunk = None if coming is None else coming.result()
        if chunk is None:
            self._coming = None
            return
        self._coming = self._reader.submit(self._next_chunk)
        needs = None
        required = self.model.requirements
        if required.cutoff is not None:
            needs = list_needs(Batch.from_host(chunk), required.cutoff, required.skin, required)
        if len(self):
            assert self.waiting is not None
            rows = np.flatnonzero(self._left)
            before = self.waiting.take(rows)
            if before.keys() != chunk.keys():
                odd = ", ".join(sorted(set(before.keys()) ^ set(chunk.keys())))
                raise ValueError(f"structures of one source must have the same arrays; some lack {odd}.")
            chunk = HostBatch.concatenate([before, chunk])
            if self._needs is not None and needs is not None:
                needs = Needs.join([self._needs.take(rows), needs])
        self.waiting, self._needs = chunk, needs
        self._unfit_rows = np.zeros(len(chunk), bool)
        self._left = np.ones(len(chunk), bool)
        sizes = self._sizes()
        pairs = np.zeros(len(sizes)) if needs is None else np.ceil(sizes * needs.neighbors)
        self._pairs = np.minimum(pairs, 2.0**62).astype(int)
        by_size = np.argsort(-sizes, kind="stable")
        self._order = np.arange(len(sizes)) if self.sampler.policy == "first come" else by_size
        if self.max_atoms:
            self._widen(sizes)
            self._leave_out()

    def _widen(self, sizes: Int[np.ndarray, " systems"]) -> None:
        """Increase `largest`, the capacity for the atoms of one system, for systems of these sizes."""
        largest = round_up(int(sizes.max()), widths_per_octave(self.max_atoms))
        self.largest = max(self.largest, min(largest, self.max_atoms))

    @property
    def needs(self) -> Needs | None:
        """What the lists of the systems of the window need, without those that are left out."""
        if self._needs is None or not self._unfit_rows.any():
            return self._needs
        return self._needs.take(np.flatnonzero(~self._unfit_rows))

    def _leave_out(self) -> None:
        """Refuse or skip systems that cannot be in the batch."""
        if self.waiting is None:
            return
        if self._needs is not None:
            for row, reason in excess(self._needs, self._sizes()).items():
                if self._left[row]:
                    self._unfit(row, reason)
        sizes, most = self._sizes(), self.sampler.max_pairs
        for row in np.flatnonzero(self._left & (sizes > self.max_atoms)).tolist():
            self._unfit(row, f"it has {sizes[row]} atoms, max_atoms is {self.max_atoms}")
        for row in np.flatnonzero(self._left & (self._pairs > (most or np.inf))).tolist():
            self._unfit(row, f"it has about {self._pairs[row]} pairs, max_pairs is {most}")
        rows = np.flatnonzero(self._left)
        if not len(rows):
            return
        try:
            self.check(Batch.from_host(self.waiting.take(rows)))
        except ValueError:
            if self.sampler.unfit == "raise":
                raise
            for row in rows.tolist():
                try:
                    self.check(Batch.from_host(self.waiting.take([row])))
                except ValueError as e:
                    self._unfit(row, str(e).rstrip("."))

    def _unfit(self, row: int, reason: str) -> None:
        assert self.waiting is not None
        name = self.waiting.name_of(row)
        if self.sampler.unfit == "raise":
            raise ValueError(f"{name} does not fit the sampler: {reason}. unfit='skip' leaves it out.")
        warnings.warn(f"{name} is left out: {reason}.", RuntimeWarning, stacklevel=8)
        self.sampler.skipped.append((int(self.waiting.system_id[row]), name, reason))
        self._left[row], self._unfit_rows[row] = False, True

    def take(
        self, systems: int, atoms: int, pairs: float | int
    ) -> tuple[HostBatch, Int[np.ndarray, " taken"]] | None:
        """The next systems that fit into this room, and the pairs of each; None if none fits."""
        while self._coming is not None and len(self) <= self.sampler.window // 2:
            self._read()
        if self.waiting is None:
            return None
        sizes, rows = self._sizes(), list[int]()
        order = self._order[self._left[self._order]]
        waits = self.sampler.policy != "best fit"
        for row in order.tolist():
            if len(rows) == systems:
                break
            if sizes[row] <= atoms and self._pairs[row] <= pairs:
                rows.append(row)
                atoms, pairs = atoms - int(sizes[row]), pairs - float(self._pairs[row])
            elif waits:
                break
        if not rows:
            return None
        self._left[rows] = False
        return self.waiting.take(np.array(rows)), self._pairs[rows]


__all__ = ["POLICIES", "Sampler", "Stream"]
