"""Sink: what hooks write systems to."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Bool

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.host import HostBatch


class SinkFull(RuntimeError):
    """A write did not fit into a sink; nothing of it was stored."""


class Sink(ABC):
    """A sequence of systems that grows. Opening is optional: `write` opens what it needs.

    A sink never drops a system: a write that does not fit raises `SinkFull` before anything of it is
    stored, and any other error of a sink ends the run too.
    """

    @abstractmethod
    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        """Appends the systems of a batch, or those where `mask` [systems] holds.

        Raises:
            SinkFull: if they do not all fit; then none is stored.
            ValueError: if their dtype or extras are not those of the systems before them.
        """

    @abstractmethod
    def read(self) -> HostBatch:
        """All systems, in the order in which they were written.

        Raises:
            ValueError: if there are none.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of systems."""

    def zero(self) -> None:
        """Removes all systems."""
        raise NotImplementedError(f"{self!r} cannot be emptied: {type(self).__name__} defines no zero().")

    def drain(self) -> HostBatch:
        """All systems, as `read` gives them; the sink is empty afterwards."""
        host = self.read()
        self.zero()
        return host

    def room_for(self, atoms_per_system: np.ndarray) -> int:
        """How many of these systems, from the first on, still fit. All of them without a capacity.

        Args:
            atoms_per_system: [systems], their sizes.
        """
        return len(atoms_per_system)

    @property
    def is_full(self) -> bool:
        """Whether not even one system of one atom fits. Never without a capacity."""
        return self.room_for(np.ones(1, np.int32)) == 0

    def to_ase(self) -> list[Atoms]:
        """All systems, one ase.Atoms each."""
        return self.read().to_ase() if len(self) else []

    def open(self) -> None:  # noqa: B027
        """Called before the first step of a run: what cannot be written fails here."""

    def close(self) -> None:  # noqa: B027
        """Called at the end of a run."""

    def _refuse_overflow(self, sizes: np.ndarray, capacity: str) -> None:
        """Raises SinkFull unless all systems of these sizes fit."""
        fit = self.room_for(sizes)
        if fit < len(sizes):
            raise SinkFull(
                f"{self!r} is full: of {len(sizes)} systems to write {fit} fit into its capacity of "
                f"{capacity}; drain it, give it a larger capacity, or put a sink behind it in a SinkChain."
            )


def systems_mask(batch: AbstractBatch, mask: Any = None) -> Bool[np.ndarray, " systems"]:
    """Which systems of a batch a mask means; padding is none.

    Raises:
        ValueError: if the mask has another length than the batch.
    """
    real = np.asarray(batch.atoms_per_system) > 0
    if mask is None:
        return real
    mask = np.asarray(mask, bool)
    if mask.shape != real.shape:
        raise ValueError(f"mask has shape {mask.shape}, but the batch has room for {len(real)} systems.")
    return real & mask


#: What must be the same for systems of one sink: the dtype, and dtype and row shape of each extra.
Format = tuple[np.dtype, dict[str, tuple]]


def extra_format(level: str, key: str, dtype: Any, row: tuple[int, ...]) -> tuple[str, tuple]:
    """The entry of an extra in a format."""
    return f"{level} extra {key!r}", (np.dtype(dtype).name, tuple(row))


def format_of(batch: AbstractBatch) -> Format:
    """The format of the systems of a batch."""
    both = (("atom", batch.atom_extras), ("system", batch.system_extras))
    return batch.dtype, dict(
        extra_format(level, key, value.dtype, value.shape[1:])
        for level, values in both
        for key, value in values.items()
    )


def check_same_format(sink: Sink, present: Format, new: Format) -> None:
    """Raises ValueError, naming what differs, if systems of two formats cannot be in one sink."""
    (dtype, extras), (new_dtype, new_extras) = present, new
    if dtype != new_dtype:
        raise ValueError(f"{sink!r} holds {dtype} systems, the new ones are {new_dtype}: use another sink.")
    odd = [key for key in {**extras, **new_extras} if extras.get(key) != new_extras.get(key)]
    if odd:
        raise ValueError(
            f"{sink!r} holds systems with other extras than the new ones, in name, dtype or shape: "
            f"{', '.join(odd)}."
        )
