"""Sampler: structures from any source, as a stream that fits a batch of fixed size.

Structures are read ahead in another thread, a window at a time, and are kept as one HostBatch; the policy
decides which of them is next. This module does not depend on engines; `stream` and `refill` use it.
"""

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Int

from alchemi_jax.dynamics.devices.devices import as_devices
from alchemi_jax.dynamics.processes import is_own
from alchemi_jax.io.sinks.base import Sink
from alchemi_jax.io.sinks.joined import open_stored
from alchemi_jax.io.sinks.zarr import ZarrData
from alchemi_jax.parameters import as_flag, function, natural, number, one_of, optional, system_ids
from alchemi_jax.shared import world
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.bounds import check_positions
from alchemi_jax.systems.capacity import float_dtype
from alchemi_jax.systems.host import HostBatch, System
from alchemi_jax.systems.levels import unsafe_replace


POLICIES = ("first come", "best fit", "largest first")


class Sampler:
    """The source of the systems of `engine.run(sampler=...)`.

    Args:
        source: structures (ase.Atoms or AtomicData) in a list, a generator or any other iterable; the path of
            a file that ASE reads (an extxyz file is read during the run); a Batch or HostBatch; or a sink,
            such as ZarrData, with systems in it.
        max_systems: number of systems in flight.
        max_atoms: number of atoms in flight, without padding; by default what `max_systems` systems of mean
            size need, and at least the size of the largest system. The mean is taken over the source if its
            sizes are known, otherwise over the first window.
        max_pairs: pairs within cutoff and skin in flight, estimated from densities: a bound for memory if
            systems differ in density. None: no bound.
        policy: which system is next. "first come": in the order of the source; "best fit": the largest system
            of the window that fits; "largest first": the largest system of the window, as soon as it fits.
            The latter leaves small systems for the end, so that the device is full for longest.
        unfit: "raise", or "skip" with a warning, for a system that is larger than the bounds or that the
            model cannot treat; `skipped` lists them.
        window: number of structures that are read ahead, at least two for each system in flight.
        dtype: dtype of the floats, as in `Batch.from_ase`.
        refill_share: share of the systems in flight that must be finished before others enter; by default the
            share with the least estimated cost, from the numbers of steps that systems take. Results do not
            depend on it.
        shrink: whether to continue with a batch of half the size when the source is empty and half of the
            systems are finished, and so on, as `engine.run(batch, shrink=True)` does.
        skip: system_ids of systems to leave out, such as those that an earlier run has finished.
        prepare: a function Batch -> Batch that is applied to each window of systems after reading, such as
            `lambda batch: initialize_velocities(batch, 300.0)`.
        devices: "all", a number, or a list of JAX devices; the cores of a CPU are devices. `max_systems` and
            `max_atoms` hold for each device, and each takes the next system when it has room. Host hooks see
            the systems of one device at a time.

    Several processes (`alchemi_jax.distributed`) read the same source, and each runs its share of it.

    The `system_id` of a system is its place in the source, from 0; systems of a Batch keep theirs. Extras of
    all structures in the first window become arrays, other extras go into `info`.

    Attributes:
        skipped: (system_id, name, reason) of the systems that the last run left out.
        traffic: statistics of the last run: systems, refills, steps, occupancy, seconds; for several devices
            also the fraction of time in which each was busy.

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
        devices: Any = None,
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
        as_devices(devices, "Sampler")
        self.source, self.dtype, self.devices = source, dtype, devices
        self.skipped: list[tuple[int, str, str]] = []
        self.traffic: Any = None

    def __repr__(self) -> str:
        source = self.source
        many = f"{len(source)} systems" if isinstance(source, Sized) else repr(source)
        bounds = f"max_systems={self.max_systems}, max_atoms={self.max_atoms}"
        return f"Sampler({many}, {bounds}, policy={self.policy!r})"

    def sizes(self) -> Int[np.ndarray, " systems"] | None:
        """Number of atoms of each system, [systems]; None if it is not known without reading the source."""
        if isinstance(self.source, Batch | HostBatch):
            return self.source.to_host().atoms_per_system
        if isinstance(self.source, list | tuple) and self.source:
            return np.array([len(a) if isinstance(a, Sized) else 0 for a in self.source])
        return None

    def chunks(
        self,
        gone: Collection[int] = (),
        look: Callable[[HostBatch], None] | None = None,
        look_prepared: Callable[[HostBatch], None] | None = None,
    ) -> Iterator[HostBatch]:
        """The source as batches of `window` systems; a source that is a batch as this batch.

        Args:
            gone: ids of systems to leave out, since they were taken before.
            look: called with all systems as they are read.
            look_prepared: called with all systems after `prepare`. `prepare` gets those in `gone`, too, so
                that random numbers of the others do not change.
        """
        prepare, gone = self.prepare, np.array(sorted({*self.skip, *gone}), int)
        for host in self._batches():
            if look is not None:
                look(host)
            left = np.isin(host.system_id, gone, invert=True)
            if left.any() or look_prepared is not None:
                host = host if prepare is None else _prepared(prepare, host)
            if look_prepared is not None:
                look_prepared(host)
            if left.any():
                yield host.take(left)

    def _batches(self) -> Iterator[HostBatch]:
        source = self.source
        if isinstance(source, Batch | HostBatch):
            host = source.to_host()
            if len(np.unique(host.system_id)) < len(host):
                raise ValueError(
                    "the system_id of all systems of a Batch must differ, since they identify the systems."
                )
            if (own := is_own(host.system_id)).any():
                yield host if own.all() else host.take(own)
            return
        if isinstance(source, ZarrData):
            # Read during the run. Rows that are written meanwhile are not included.
            stored = open_stored(source.path) if len(source) else None
            for first in range(0, stored.n_systems if stored else 0, self.window):
                assert stored is not None
                rows = np.arange(first, min(first + self.window, stored.n_systems))
                rows = rows[is_own(rows)]
                if len(rows):
                    yield _with_ids(stored.batch(rows), rows)
            return
        if isinstance(source, Sink):
            if len(source):
                host = source.read()
                host = _with_ids(host, np.arange(len(host)))
                if (own := is_own(host.system_id)).any():
                    yield host.take(own)
            return
        entries = enumerate(_structures(source))
        extras, size = None, world().size
        # Each process keeps its own of them.
        while entry := list(itertools.islice(entries, self.window * size)):
            own = is_own(np.array([number for number, _ in entry])).tolist()
            # Of the first window all are read, so that processes agree about the extras.
            wanted = [pair for pair, mine in zip(entry, own, strict=True) if mine or extras is None]
            data = [read for number, structure in wanted if (read := self._read(number, structure))]
            if not data:
                continue
            numbers, systems = zip(*data, strict=True)
            host = HostBatch.from_data_list(systems, self.dtype, extras)
            extras = {*host.atom_extras, *host.system_extras}
            host = _with_ids(host, np.array(numbers))
            if size == 1:
                yield host
            elif (mine := is_own(host.system_id)).any():
                yield host.take(mine)

    def _read(self, number: int, structure: Any) -> tuple[int, AtomicData | System] | None:
        """A structure of the source with its number; None if it is left out because it is not valid."""
        if not is_own(np.array([number]))[0]:
            # What is wrong with it is told by the process that runs it.
            with contextlib.suppress(ValueError):
                return number, _data(number, structure)
            return None
        try:
            data = _data(number, structure)
            check_positions(data.name, np.asarray(data.positions), float_dtype(self.dtype))
        except ValueError as e:
            if self.unfit == "raise":
                raise
            if number in {i for i, _, _ in self.skipped}:
                # A run that goes on has said so before.
                return None
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


__all__ = ["POLICIES", "Sampler"]
