"""TrainingBatch, what one step of a training sees, and ListedBatches, batches that are in memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.devices.deal import deal
from alchemi_jax.errors import description, name_of
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import ListSizes, NeighborList, Requirements
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.training.data import Batches
from alchemi_jax.training.fingerprint import fingerprint


class TrainingBatch(eqx.Module):
    """Systems with labels, and their neighbor list or what a step needs to build it.

    Attributes:
        batch: the systems. `energy`, `forces` and `stress` are labels, NaN if missing; further labels are
            extras.
        sizes: capacities of the list; static, so another value recompiles. None for a model without a list.
        neighbors: a finished list, which the step uses instead of building one.
        requirements: requirements of the list, with `sizes`: `training_requirements(model)`.
    """

    batch: Batch
    sizes: ListSizes | None = eqx.field(static=True, default=None)
    neighbors: NeighborList | None = None
    requirements: Requirements | None = eqx.field(static=True, default=None)

    def unpack(self) -> tuple[Batch, NeighborList | None]:
        """The systems and their neighbor list, inside the step."""
        if self.neighbors is not None or self.sizes is None:
            return self.batch, self.neighbors
        needs = self.requirements
        if needs is None or needs.cutoff is None:
            raise ValueError("a TrainingBatch with sizes needs training_requirements(model), too.")
        empty = nl.empty_list(self.batch, needs.cutoff, needs.skin, self.sizes, needs)
        return self.batch, nl.update(self.batch, empty)

    def to_batch(self) -> Batch:
        """The systems with their names, on the host."""
        return self.batch

    def deal(self, n: int) -> "tuple[TrainingBatch, TrainingBatch, np.ndarray]":
        """The batch in n parts for n devices.

        Returns:
            The batch without its systems, its systems in n parts [n, ...], and the place of each among all
            parts.

        Raises:
            ValueError: for a batch with `neighbors`, which are those of all systems.
        """
        if self.neighbors is not None:
            raise ValueError(
                "with devices= each device makes the list of its systems: give a TrainingBatch sizes in "
                "place of neighbors."
            )
        batch, places = self.batch, np.zeros(self.batch.system_capacity, np.int32)
        atoms = np.asarray(batch.atoms_per_system)
        parts = deal(atoms[: batch.num_systems].astype(float), n)
        systems, most = max(map(len, parts)), max(int(atoms[rows].sum()) for rows in parts)
        for number, rows in enumerate(parts):
            places[rows] = number * systems + np.arange(len(rows))
        # Of devices without systems nothing is asked.
        found = [
            Batch.from_host(batch.to_host(rows), most, systems, largest=batch.largest).with_meta(None)
            for rows in [*parts, *[parts[0]] * (n - len(parts))]
        ]
        stacked = jax.tree.map(lambda *x: np.stack(x), *found)
        alone = unsafe_replace(self, sizes=None, requirements=None)
        return alone, unsafe_replace(self, batch=stacked), places


@runtime_checkable
class Item(Protocol):
    """What the step sees of data: a pytree of arrays."""

    def unpack(self) -> tuple[Batch, NeighborList | None]:
        """The systems and their complete neighbor list. Pure, called inside the compiled step."""
        ...

    def to_batch(self) -> Batch:
        """The systems with their names, on the host."""
        ...


@runtime_checkable
class TrainingData(Protocol):
    """What `Trainer.run` takes as data.

    A method `fit_to(model, loss)`, if there is one, is called when a run begins, and returns the data whose
    batches the model can take. A method `fingerprint()`, if there is one, gives a text that follows from the
    contents; a training goes on from a checkpoint only with data of the same text.
    """

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        ...

    def epoch(self, key: PRNGKeyArray, epoch: int, start: int = 0) -> Iterator[Item]:
        """The batches of an epoch, in an order that depends on key and epoch alone, from `start` on."""
        ...

    def in_order(self) -> Iterator[Item]:
        """All batches, in the order of the data."""
        ...


class ListedBatches:
    """Given batches as the data of a training; each epoch has another order.

    Args:
        batches: Batch or TrainingBatch, one or more.

    Raises:
        TypeError, ValueError: for other entries, or an empty list.
    """

    def __init__(self, batches: Sequence[Any]):
        self.batches: list[TrainingBatch] = []
        for number, entry in enumerate(batches):
            if isinstance(entry, Batch):
                entry = TrainingBatch(entry)
            if not isinstance(entry, TrainingBatch):
                raise TypeError(f"batch {number} of the data is {description(entry)}, not a Batch.")
            self.batches.append(entry)
        if not self.batches:
            raise ValueError("the data of a training have no batches.")

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, key: PRNGKeyArray, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """The batches, in an order that depends on key and epoch."""
        words = np.asarray(jax.random.key_data(key)).ravel().tolist()
        order = np.random.default_rng([*words, epoch]).permutation(len(self.batches))
        for number in order[start:].tolist():
            yield self.batches[number]

    def in_order(self) -> Iterator[TrainingBatch]:
        """The batches as they were given."""
        return iter(self.batches)

    def fit_to(self, model: AbstractModel, loss: Any = None) -> "ListedBatches":
        """The batches with capacities for neighbor lists. Batches of one shape get the same capacities, so
        that they share compiled code.

        Raises:
            ValueError: naming the system that the model cannot treat, or that has an infinite label; naming a
                label of the loss that no system has.
        """
        for entry in self.batches:
            model.check(entry.batch)
        self._check_labels(getattr(loss, "names", ()))
        needs = training_requirements(model)
        if needs.cutoff is None:
            return self
        room: dict[Any, ListSizes] = {}
        for entry in self.batches:
            if entry.sizes is None and entry.neighbors is None:
                sizes = nl.allocate(entry.batch, needs).sizes
                shape = _shape_of(entry.batch)
                room[shape] = _join(room.get(shape, sizes), sizes)
        fitted = [
            entry
            if entry.sizes is not None or entry.neighbors is not None
            else dataclasses.replace(entry, sizes=room[_shape_of(entry.batch)], requirements=needs)
            for entry in self.batches
        ]
        return ListedBatches(fitted)

    def _check_labels(self, names: Sequence[str]) -> None:
        there = dict.fromkeys(names, False)
        for number, entry in enumerate(self.batches):
            batch, known = entry.batch, entry.batch.keys()
            for name in names:
                if name not in known:
                    continue
                values = np.asarray(jax.device_get(batch[name]))
                there[name] |= bool(np.isfinite(values).any())
                if np.isinf(values).any():
                    row = np.argwhere(np.isinf(values))[0, 0]
                    row = np.asarray(batch.batch_idx)[row] if batch.level(name) == "atom" else row
                    raise ValueError(
                        f"{batch.name_of(int(row))} of batch {number} of the data has an infinite label "
                        f"{name!r}: make it NaN, which stands for a label that is missing, or remove it."
                    )
        for name in names:
            if not there[name]:
                found = ", ".join(n for n, yes in there.items() if yes) or "none of those that it asks for"
                raise ValueError(
                    f"no system of the data has a label {name!r}, which the loss asks for; they have {found}."
                )

    def fingerprint(self) -> str:
        """A checksum of systems and labels."""
        return fingerprint([entry.batch for entry in self.batches])


def _shape_of(batch: Batch) -> Any:
    return batch.atom_capacity, batch.system_capacity, batch.largest, batch.dtype


def _join(a: ListSizes, b: ListSizes) -> ListSizes:
    """Room for the lists of two batches; where their builders differ, brute force."""
    most = {
        field.name: max(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)
    }
    if a.builder != b.builder:
        # Brute force compares with more places than a cell list.
        most["groups"] = 0
        brute = a if a.builder == "brute force" else b
        most["candidates"] = max(brute.candidates, most["candidates"])
    return ListSizes(**most)


def training_requirements(model: AbstractModel) -> Requirements:
    """What a model needs of the lists in a training: without a skin, since each is made for one step."""
    return dataclasses.replace(model.requirements, skin=0.0)


def as_data(data: Any, model: AbstractModel, loss: Any = None, what: str = "data") -> TrainingData:
    """Data of a training, ready for a model, from anything that `Trainer.run` takes.

    Raises:
        TypeError: for what is no data.
    """
    if isinstance(data, Batch | TrainingBatch):
        data = [data]
    if isinstance(data, list | tuple) and data and isinstance(data[0], Batch | TrainingBatch):
        data = ListedBatches(data)
    if data is None or isinstance(data, bool | int | float):
        raise TypeError(
            f"{what} of a training must be structures with labels, a path, a list of batches, or have "
            f"len, epoch(key, epoch, start) and in_order(), as Batches has: not {description(data)}."
        )
    if isinstance(data, list | tuple) and not data:
        raise ValueError(f"{what} of a training is an empty list.")
    if not isinstance(data, TrainingData):
        data = Batches(data)
    fit = getattr(data, "fit_to", None)
    data = data if fit is None else fit(model, loss)
    if len(data) < 1:
        raise ValueError(f"{what} of a training, a {name_of(data)}, has no batches.")
    return data


__all__ = ["Item", "ListedBatches", "TrainingBatch", "TrainingData", "as_data", "training_requirements"]
