"""Stream: one pass through the source of a sampler.

Structures are read ahead in another thread, a window at a time, and are kept as one HostBatch; the policy of
the sampler decides which of them is next.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from alchemi_jax.dynamics.sameness import SourceMarks
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.saved import AnotherRun
from alchemi_jax.errors import public_call
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import Needs, excess, list_needs
from alchemi_jax.shared import world
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import round_up, sizes_per_octave, widths_per_octave
from alchemi_jax.systems.host import HostBatch


class Stream:
    """One pass through the source of a sampler: the systems that wait, and which is next.

    `check` raises a ValueError for a batch with a system that cannot be treated. `saved`: what `saved` gave,
    of a run that goes on; `known` are the systems that are in its batch. `marks`: whether systems are to be
    known again by a run that goes on. `shares`: number of batches that are filled from the stream, each by a
    thread of its own.
    """

    def __init__(
        self,
        sampler: Sampler,
        model: AbstractModel,
        check: Callable[[Batch], None],
        saved: Mapping[str, Any] | None = None,
        known: HostBatch | None = None,
        marks: bool = False,
        shares: int = 1,
    ):
        self.sampler, self.model, self.check, self.shares = sampler, model, check, shares
        #: Held while systems are taken, and by those who need that none are.
        self.lock = threading.RLock()
        before = {} if saved is None else saved
        sampler.skipped = [(int(i), str(name), str(reason)) for i, name, reason in before.get("skipped", [])]
        #: Ids of the systems that were taken or left out.
        self._gone: list[Any] = [np.asarray(before.get("gone", np.zeros(0, np.int32)))]
        self._known = known
        self._marks = SourceMarks(before.get("marks")) if marks else None
        looks = () if self._marks is None else (self._look, self._marks.look_prepared)
        self._chunks = sampler.chunks(self._gone[0].tolist(), *looks)
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
        if saved is not None:
            self.max_atoms, self.largest = int(saved["max_atoms"]), int(saved["largest"])
            self._read()
            return
        sizes = sampler.sizes()
        self._read()
        if self.waiting is None and not sampler.skipped and world().size == 1:
            raise ValueError(f"the source of {sampler!r} holds no systems.")
        first = sizes if sizes is not None else self._sizes()
        if len(first):
            if sampler.max_atoms is None:
                most = min(sampler.max_systems, -(-len(first) // shares))
                enough = int(np.ceil(first.mean() * most * 1.05))
                enough = max(int(first.max()), enough)
                self.max_atoms = round_up(enough, sizes_per_octave(enough), 16)
            self._widen(first)
        self._leave_out()

    def _next_chunk(self) -> HostBatch | None:
        """The next chunk; None at the end. In the thread that reads ahead."""
        # Settings made by `with` hold in the thread that made them alone.
        with jax.enable_x64(self._x64), public_call():
            chunk = next(self._chunks, None)
            if chunk is None and self._marks is not None:
                self._marks.end()
            return chunk

    def _look(self, host: HostBatch) -> None:
        """Compare systems with those of a checkpoint. In the thread that reads ahead."""
        assert self._marks is not None
        if self._known is not None:
            _check_known(self._known, host)
        self._marks.look(host)

    def saved(self, gone: Int[np.ndarray, " systems"] | None = None) -> dict[str, Any]:
        """What a checkpoint keeps of the stream.

        Args:
            gone: ids of the systems that do not come again; by default all that were taken or left out.
        """
        with self.lock:
            self._gone = [np.concatenate([np.asarray(ids, np.int32) for ids in self._gone])]
            left = self._gone[0] if gone is None else gone
            return {
                "gone": left,
                "max_atoms": self.max_atoms,
                "largest": self.largest,
                "skipped": [list(entry) for entry in self.sampler.skipped],
                "marks": None if self._marks is None else self._marks.of(left),
            }

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Number of systems that were read and wait."""
        return int(self._left.sum())

    @property
    def more(self) -> bool:
        """Whether any system waits, read or not."""
        with self.lock:
            return len(self) > 0 or self._coming is not None

    @property
    def places(self) -> int:
        """The number of systems with which each batch begins."""
        with self.lock:
            self._read_ahead()
            most = self.sampler.max_systems
            return most if self._coming is not None else min(most, -(-len(self) // self.shares))

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
        needs = self._needs_of(chunk)
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
        self._pairs = _count_pairs(sizes, needs)
        by_size = np.argsort(-sizes, kind="stable")
        self._order = np.arange(len(sizes)) if self.sampler.policy == "first come" else by_size
        if self.max_atoms:
            self._widen(sizes)
            self._leave_out()

    def _needs_of(self, host: HostBatch) -> Needs | None:
        required = self.model.requirements
        if required.cutoff is None:
            return None
        return list_needs(Batch.from_host(host), required.cutoff, required.skin, required)

    @property
    def pairs(self) -> Int[np.ndarray, " waiting"]:
        """About how many pairs the systems of the window have."""
        return self._pairs

    def pairs_of(self, host: HostBatch) -> Int[np.ndarray, " systems"]:
        """About how many pairs systems have."""
        return _count_pairs(host.atoms_per_system, self._needs_of(host))

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
        self._gone.append([self.waiting.system_id[row]])

    def take(
        self, systems: int, atoms: int, pairs: float | int
    ) -> tuple[HostBatch, Int[np.ndarray, " taken"]] | None:
        """The next systems that fit into this room, and the pairs of each; None if none fits."""
        with self.lock:
            self._read_ahead()
            return self._take(systems, atoms, pairs)

    def _read_ahead(self) -> None:
        while self._coming is not None and len(self) <= self.sampler.window // 2:
            self._read()

    def _take(
        self, systems: int, atoms: int, pairs: float | int
    ) -> tuple[HostBatch, Int[np.ndarray, " taken"]] | None:
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
        self._gone.append(self.waiting.system_id[rows])
        return self.waiting.take(np.array(rows)), self._pairs[rows]


def _count_pairs(sizes: Int[np.ndarray, " systems"], needs: Needs | None) -> Int[np.ndarray, " systems"]:
    pairs = np.zeros(len(sizes)) if needs is None else np.ceil(sizes * needs.neighbors)
    return np.minimum(pairs, 2.0**62).astype(int)


def _check_known(known: HostBatch, host: HostBatch) -> None:
    """Check that systems of a source are those that a checkpoint has under their ids.

    Raises:
        AnotherRun: naming the system.
    """
    # Without x64 a store in float64 is a batch in float32.
    dtype = jax.dtypes.canonicalize_dtype(host.dtype)
    if known.dtype != dtype:
        raise AnotherRun(f"the checkpoint is in {known.dtype}, the source in {dtype}: give the same.")
    places = {i: row for row, i in enumerate(known.system_id.tolist())}
    for row in np.flatnonzero(np.isin(host.system_id, known.system_id)).tolist():
        old, new = known[places[int(host.system_id[row])]], host[row]
        if not np.array_equal(old.numbers, new.numbers):
            raise AnotherRun(
                f"{host.name_of(row)} has other atoms than the system that the checkpoint has in its place, "
                f"number {int(host.system_id[row])} of the source: give the same source."
            )


__all__ = ["Stream"]
