"""Sink: the base class of objects to which hooks write systems."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Bool, Int

from alchemi_jax.io.cut import ADVICE
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.host import HostBatch


class SinkFull(RuntimeError):
    """A write did not fit into a sink. No part of it was stored."""


class Sink(ABC):
    """A growing sequence of systems. Opening it is optional: `write` opens it if necessary.

    A sink never drops a system: a write that does not fit raises `SinkFull` before any part of it is stored.
    Any other error of a sink ends the run, too.
    """

    @abstractmethod
    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        """Append systems of a batch.

        Args:
            batch: the systems.
            mask: [systems], True for those to write; by default all.

        Raises:
            SinkFull: if not all of them fit; then none is stored.
            ValueError: if their dtype or extras differ from those of the systems in the sink.
        """

    @abstractmethod
    def read(self) -> HostBatch:
        """All systems, in the order in which they were written.

        Raises:
            ValueError: if there are no systems.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Number of systems."""

    def zero(self) -> None:
        """Remove all systems."""
        raise NotImplementedError(f"{self!r} cannot be emptied: {type(self).__name__} defines no zero().")

    def drain(self) -> HostBatch:
        """All systems, as from `read`; the sink is empty afterwards."""
        host = self.read()
        self.zero()
        return host

    def room_for(self, atoms_per_system: Int[np.ndarray, " systems"]) -> int:
        """How many of these systems, from the first on, still fit; all of them if there is no capacity.

        Args:
            atoms_per_system: [systems], number of atoms of each.
        """
        return len(atoms_per_system)

    @property
    def is_full(self) -> bool:
        """Whether not even a system of one atom fits. Always False without a capacity."""
        return self.room_for(np.ones(1, np.int32)) == 0

    def to_ase(self) -> list[Atoms]:
        """All systems, one ase.Atoms each."""
        return self.read().to_ase() if len(self) else []

    def open(self) -> None:  # noqa: B027
        """Open the sink. A run calls it before its first step, so that errors of opening come early."""

    def close(self) -> None:  # noqa: B027
        """Close the sink. A run calls it at its end."""

    def state(self) -> Any:
        """How much was written; a checkpoint keeps it. Everything that was written is committed first.

        The value is a tree of dictionaries with text as keys, lists, text, numbers, None and numpy arrays.
        None: there is no file yet, or opening replaces it (mode "w", not open yet). By default it is the
        number of systems.
        """
        return {"systems": len(self)}

    def set_state(self, state: Any) -> None:
        """Return to a `state`: what was written later is removed, and writing continues there, also with mode
        "w" or "x". None: the file is removed, if this library wrote it.

        Call it before a run opens the sink. If the process is killed during the call, the same call works
        again.

        Raises:
            ValueError: naming the path, if the sink has less than the state says, or something else.
            NotImplementedError: if the sink cannot go back; by default it can only stay where it is.
        """
        said = 0 if state is None else int(state["systems"])
        if len(self) > said:
            raise NotImplementedError(
                f"{self!r} has {len(self)} systems, the checkpoint says {said}, and a {type(self).__name__} "
                "cannot go back: define state() and set_state(state), or remove the systems after them."
            )
        if len(self) < said:
            raise ValueError(f"{self!r} has {len(self)} systems, the checkpoint says {said}: {ADVICE}.")

    def _refuse_overflow(self, sizes: Int[np.ndarray, " systems"], capacity: str) -> None:
        """Raise SinkFull unless all systems of these sizes fit."""
        fit = self.room_for(sizes)
        if fit < len(sizes):
            raise SinkFull(
                f"{self!r} is full: of {len(sizes)} systems to write {fit} fit into its capacity of "
                f"{capacity}; drain it, give it a larger capacity, or put a sink behind it in a SinkChain."
            )


def check_mode(sink: Sink, mode: Any) -> str:
    """The mode in which a sink opens its file or store.

    Raises:
        ValueError: for an unknown one.
    """
    if not isinstance(mode, str) or mode not in ("a", "w", "x", "r"):
        raise ValueError(f"mode of {type(sink).__name__} must be 'a', 'w', 'x' or 'r', not {mode!r}.")
    return mode


def check_batch(sink: Sink, batch: Any) -> None:
    """Raise TypeError unless it is something that sinks take."""
    if not isinstance(batch, AbstractBatch):
        raise TypeError(
            f"{type(sink).__name__}.write takes a Batch or a HostBatch, not a {type(batch).__name__}: "
            "Batch.from_ase makes one from structures."
        )


def systems_mask(batch: AbstractBatch, mask: Any = None) -> Bool[np.ndarray, " systems"]:
    """The mask (by default all systems) without padding.

    Raises:
        ValueError: if the mask and the batch have different lengths.
    """
    real = np.asarray(batch.atoms_per_system) > 0
    if mask is None:
        return real
    mask = np.asarray(mask)
    if mask.dtype != bool:
        # Numbers might be meant as indices of systems.
        raise ValueError(f"mask must be true or false for each system, not {mask.dtype}.")
    if mask.shape != real.shape:
        raise ValueError(f"mask has shape {mask.shape}, but the batch has room for {len(real)} systems.")
    return real & mask


#: The format that all systems of a sink share: the dtype, and dtype and row shape of each extra.
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
    """Raise ValueError, naming the difference, if the formats differ."""
    (dtype, extras), (new_dtype, new_extras) = present, new
    if dtype != new_dtype:
        raise ValueError(f"{sink!r} holds {dtype} systems, the new ones are {new_dtype}: use another sink.")
    odd = [key for key in {**extras, **new_extras} if extras.get(key) != new_extras.get(key)]
    if odd:
        raise ValueError(
            f"{sink!r} holds systems with other extras than the new ones, in name, dtype or shape: "
            f"{', '.join(odd)}."
        )
