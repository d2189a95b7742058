"""Mixture: batches from several sources, with given shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from alchemi_jax.errors import description
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import as_key, natural, optional
from alchemi_jax.training.data import as_batches, no_label, random_of
from alchemi_jax.training.packed import PackedBatch
from alchemi_jax.training.references import check_same_references


class Mixture:
    """Several sources, from which batches are drawn in given proportions.

        data = Mixture([(Batches("pbe.extxyz"), 0.8), (Batches("surfaces.extxyz"), 0.2)])

    Each batch is from one source, which depends on key and epoch. Over many batches the proportions are those
    of the weights. A source that is used up starts again in another order.

    Args:
        parts: pairs of Batches and a positive weight.
        length: batches per epoch; by default those of all sources together.

    Raises:
        ValueError: without parts, for weights that are not positive, or for sources from which different
            energies of elements were subtracted.
    """

    def __init__(self, parts: Iterable[Any], length: int | None = None):
        parts = list(parts)
        for part in parts:
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise ValueError(f"parts of a Mixture must be pairs of Batches and weight, not {part!r}.")
        pairs = [(as_batches(source), weight) for source, weight in parts]
        if not pairs:
            raise ValueError("Mixture needs at least one pair of Batches and weight.")
        for source, weight in pairs:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < np.inf:
                raise ValueError(f"weights of a Mixture must be positive numbers, not {weight!r}.")
            if not hasattr(source, "prepare"):
                raise ValueError(
                    "sources of a Mixture must be Batches, or what they are made of, not "
                    f"{description(source)}."
                )
        self.parts = tuple(pairs)
        self.length = optional(natural("length"))(length)
        for source, _ in pairs[1:]:
            check_same_references(pairs[0][0], source, f"{source!r} in the Mixture")

    @property
    def subtracted(self) -> dict[str, float]:
        """The energies of elements that were subtracted from all sources, eV, by symbol."""
        return self.parts[0][0].subtracted

    def fit_to(self, model: AbstractModel, loss: Any = None) -> Mixture:
        """All sources for a model. One of them must have each label of the loss.

        Raises:
            ValueError: as `Batches.fit_to`.
        """
        if loss is not None and hasattr(loss, "check"):
            loss.check(model)
        known = {name for source, _ in self.parts for name in source.labelled(model)}
        for name in getattr(loss, "names", ()):
            if name not in known:
                raise no_label("any source of the Mixture", name, known)
        names = getattr(loss, "names", ())
        return Mixture([(source.prepare(model, names), weight) for source, weight in self.parts], self.length)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return sum(len(source) for source, _ in self.parts) if self.length is None else self.length

    def epoch(self, key: Any, epoch: int, start: int = 0) -> Iterator[PackedBatch]:
        """The batches of an epoch, as `Batches.epoch`."""
        weights = np.array([weight for _, weight in self.parts], float)
        chosen = random_of(key, epoch).choice(len(weights), size=len(self), p=weights / weights.sum())
        used = np.bincount(chosen[:start], minlength=len(weights))
        streams = [self._stream(part, key, epoch, int(used[part])) for part in range(len(self.parts))]
        try:
            for part in chosen[start:]:
                yield next(streams[part])
        finally:
            for stream in streams:
                stream.close()

    def _stream(self, part: int, key: Any, epoch: int, start: int) -> Any:
        """The batches of a source in one epoch of the mixture, without end."""
        source, _ = self.parts[part]
        again, start = divmod(start, len(source))
        key = jax.random.fold_in(as_key(key), part)
        while True:
            yield from source.epoch(jax.random.fold_in(key, again), epoch, start)
            again, start = again + 1, 0

    def fingerprint(self) -> str:
        """A checksum of all sources, weights and the number of batches."""
        parts = [(getattr(s, "fingerprint", s.__len__)(), weight) for s, weight in self.parts]
        return f"{parts} {len(self)}"

    def in_order(self) -> Iterator[PackedBatch]:
        """All structures of all sources once, whatever the weights."""
        for source, _ in self.parts:
            yield from source.in_order()


__all__ = ["Mixture"]
