"""Sink: what hooks write systems to."""

from abc import ABC, abstractmethod
from typing import Any

from ase import Atoms

from alchemi_jax.batch import Batch


class Sink(ABC):
    """A sequence of systems that grows. Opening is optional: `write` opens what it needs."""

    @abstractmethod
    def write(self, batch: Batch, mask: Any = None) -> None:
        """Appends the systems of a batch, or those where `mask` [systems] holds."""

    @abstractmethod
    def read(self) -> Batch:
        """All systems, in the order in which they were written."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of systems."""

    def to_ase(self) -> list[Atoms]:
        """All systems, one ase.Atoms each."""
        return self.read().to_ase() if len(self) else []

    def open(self) -> None:  # noqa: B027
        """Called before the first step of a run: what cannot be written fails here."""

    def close(self) -> None:  # noqa: B027
        """Called at the end of a run."""
