"""HostMemory: systems kept in the memory of the host."""

import sys
from typing import Any

import numpy as np

from alchemi_jax.io.sinks.base import Sink, check_batch, check_same_format, format_of, systems_mask
from alchemi_jax.io.sinks.saved import batch_from_tree, batch_tree
from alchemi_jax.parameters import natural, optional
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


class HostMemory(Sink):
    """A sink in the memory of the host: a list of HostBatch.

    Args:
        capacity: maximum number of systems; by default unbounded.
    """

    def __init__(self, capacity: int | None = None):
        self.capacity = optional(natural("capacity of HostMemory", sys.maxsize))(capacity)
        self._batches: list[HostBatch] = []
        self._systems = 0

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = systems_mask(batch, mask)
        sizes = np.asarray(batch.atoms_per_system)[which]
        if not len(sizes):
            return
        if self._batches:
            check_same_format(self, format_of(self._batches[0]), format_of(batch))
        self._refuse_overflow(sizes, f"{self.capacity} systems")
        self._batches.append(batch.to_host(None if mask is None else which))
        self._systems += len(sizes)

    def room_for(self, atoms_per_system: Any) -> int:
        n = len(atoms_per_system)
        return n if self.capacity is None else min(n, self.capacity - self._systems)

    def read(self) -> HostBatch:
        if not self._batches:
            raise ValueError("HostMemory is empty: nothing was written to it.")
        return HostBatch.concatenate(self._batches)

    def zero(self) -> None:
        self._batches, self._systems = [], 0

    def state(self) -> Any:
        """The systems themselves."""
        if len(self._batches) > 1:
            self._batches = [HostBatch.concatenate(self._batches)]
        return {"systems": self._systems, "batch": batch_tree(self._batches[0] if self._batches else None)}

    def set_state(self, state: Any) -> None:
        """Replace the systems by those of a state."""
        batch = None if state is None else batch_from_tree(state["batch"])
        self._batches = [] if batch is None else [batch]
        self._systems = 0 if batch is None else len(batch)

    def __len__(self) -> int:
        return self._systems

    def __repr__(self) -> str:
        room = "" if self.capacity is None else f" of {self.capacity}"
        return f"HostMemory({len(self)}{room} systems)"
