"""HostMemory: systems kept in the memory of the host."""

from typing import Any

import numpy as np

from alchemi_jax.batch import Batch
from alchemi_jax.dynamics.sinks.base import Sink


class HostMemory(Sink):
    """Keeps systems as numpy arrays, in a list of batches without padding."""

    def __init__(self):
        self._batches: list[Batch] = []

    def write(self, batch: Batch, mask: Any = None) -> None:
        if mask is None or np.any(mask):
            self._batches.append(batch.take(mask))

    def read(self) -> Batch:
        if not self._batches:
            raise ValueError("HostMemory is empty: nothing was written to it.")
        return Batch.concatenate(self._batches)

    def __len__(self) -> int:
        return sum(b.num_systems for b in self._batches)

    def __repr__(self) -> str:
        return f"HostMemory({len(self)} systems)"
