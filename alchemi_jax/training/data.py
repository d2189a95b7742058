"""Batches: structures with labels as batches of few shapes, shuffled anew in each epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Shaped

from alchemi_jax.errors import name_of
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.neighbors import Requirements
from alchemi_jax.neighbors.rows import NeighborRows, neighbor_rows
from alchemi_jax.parameters import as_key, natural, optional
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.bounds import check_positions
from alchemi_jax.systems.capacity import float_dtype
from alchemi_jax.systems.metadata import Metadata, SystemMeta
from alchemi_jax.training.buckets import batch_size, split_by_size
from alchemi_jax.training.fingerprint import fingerprint
from alchemi_jax.training.packed import Layout, PackedBatch, pack_rows
from alchemi_jax.training.prefetch import prefetch
from alchemi_jax.training.references import without_elements
from alchemi_jax.training.source import FIELDS, label_of, read_labelled


#: eV per atom: energies that would be rounded by more are refused.
_MOST_LOST = 2e-5
#: Structures that a model checks at a time.
_CHECKED_TOGETHER = 256


class _Bucket(NamedTuple):
    layout: Layout
    numbers: Int[np.ndarray, " rows"]
    floats: Shaped[np.ndarray, "rows floats"]
    integers: Shaped[np.ndarray, "rows integers"]


class Batches:
    """Structures with labels, as padded batches: the data of `Trainer.run` and `validation`.

        data = Batches("train.extxyz", max_systems=16)
        trainer.run(data, epochs=100, validation=Batches("valid.extxyz"))

    Labels are the results in calculators, files and stores (`Batch.from_ase(results=True)`). Others are read
    from `atoms.arrays` and `atoms.info` by the names of the model's results. Missing labels are NaN and do
    not count in the loss. Forces of exactly zero on fixed atoms are taken as missing. Structures are sorted
    by size into a few buckets. Each has one shape, so a step compiles once per bucket. Neighbors are found
    once, on the host.

    Each structure occurs once per epoch. The order follows from key and epoch alone. The last batch of a
    bucket may have fewer structures.

    Args:
        source: ASE structures; the path of a file (any format of ASE, also .gz), a folder or a `ZarrData`
            store; a sink, a batch, a Trajectory, or a database of `ase.db`.
        max_systems: largest number of structures in a batch.
        max_atoms, max_edges: largest numbers in a batch; edges are pairs within the cutoff, in both
            directions.
        dtype: float32 or float64, as in `Batch.from_ase`.
        buckets: largest number of shapes.
        subtract: energies of elements, eV, that are subtracted from each energy in double precision, by
            symbol; or "fit": those of `fit_element_energies`. The model then learns the rest. Total energies
            of most electronic-structure codes need it, because they are too large for single precision. Use
            the same energies for validation: `Batches(others, subtract=data.subtracted)`.
        extras: names of numbers from `atoms.arrays` or `atoms.info` that the model reads from the batch, such
            as "head".
        ahead: number of batches that a thread makes in advance; 0: no thread. By default 2, on a CPU 0, where
            a thread takes more time than it saves.

    Raises:
        ValueError: naming an entry that is not a structure, a structure with an infinite label, or an element
            without an energy in `subtract`; for counts that are not positive.

    Attributes:
        subtracted: the energies that were subtracted, eV, by symbol; empty without `subtract`.
    """

    def __init__(
        self,
        source: Any,
        max_systems: int = 8,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        *,
        dtype: Any = None,
        buckets: int = 4,
        subtract: Any = None,
        extras: Sequence[str] = (),
        ahead: int | None = None,
    ):
        self.max_systems = natural("max_systems")(max_systems)
        self.max_atoms = optional(natural("max_atoms"))(max_atoms)
        self.max_edges = optional(natural("max_edges"))(max_edges)
        self.buckets = natural("buckets")(buckets)
        self.dtype = float_dtype(dtype)
        self.extras = (extras,) if isinstance(extras, str) else tuple(extras)
        self.ahead = ahead if ahead in (None, 0) else natural("ahead")(ahead)
        structures, self.name = read_labelled(source)
        self.structures, self.subtracted = without_elements(structures, subtract)
        for data in self.structures:
            check_positions(data.name, data.positions, self.dtype)
        self._meta = [SystemMeta(data.name, data.info) for data in self.structures]
        self._made: list[_Bucket] | None = None
        self._lists: tuple[Requirements, list[NeighborRows | None]] | None = None

    @property
    def _depth(self) -> int:
        if self.ahead is None:
            return 0 if jax.default_backend() == "cpu" else 2
        return self.ahead

    def __repr__(self) -> str:
        atoms = sum(map(len, self.structures))
        return f"Batches({len(self.structures)} structures, {atoms} atoms, of {self.name})"

    # -- preparing -------------------------------------------------------------------------------

    def fit_to(self, model: AbstractModel, loss: Any = None) -> Batches:
        """The data for a model: checked, with its neighbors and labels.

        Args:
            loss: its `names` are the labels that must exist.

        Raises:
            ValueError: naming a structure that the model cannot treat or that alone exceeds a bound, a label
                of another shape, or a label of the loss that no structure has.
        """
        if loss is not None and hasattr(loss, "check"):
            loss.check(model)
        known = self.labelled(model)
        for name in getattr(loss, "names", ()):
            if name not in known:
                raise no_label(self.name, name, known)
        return self.prepare(model, getattr(loss, "names", ()))

    def prepare(self, model: AbstractModel, names: Sequence[str] = ()) -> Batches:
        """The same as `fit_to` for a loss with these names, but no structure needs to have the labels."""
        levels = {**self._levels_of_extras(), **model.extra_results}
        labels = [self._labels(data, levels) for data in self.structures]
        for name in set(names) & set(model.never_negative):
            self._check_sizes(name, labels, name_of(model))
        if "energy" in names:
            self._check_rounding()
        for begin in range(0, len(self.structures), _CHECKED_TOGETHER):
            part = self.structures[begin : begin + _CHECKED_TOGETHER]
            model.check(Batch.from_data_list(part, self.dtype))
        new, required = copy.copy(self), model.requirements
        if self._lists is None or self._lists[0] != required:
            new._lists = required, [_neighbors(data, required) for data in self.structures]
            self._lists = new._lists
        assert new._lists is not None, "made above"
        new._made = new._pack(required, new._lists[1], levels, labels)
        return new

    def _check_rounding(self) -> None:
        """An energy is one number of a batch: of a large one single precision leaves little to be learned."""
        energies = np.array([float(data.energy) for data in self.structures])
        atoms = np.array([len(data) for data in self.structures])
        lost = np.nan_to_num(np.abs(np.spacing(energies.astype(self.dtype)))) / 2 / atoms
        worst = int(np.argmax(lost))
        if lost[worst] > _MOST_LOST:
            raise ValueError(
                f"{self.structures[worst].name} has an energy of {energies[worst]:.6g} eV, of which "
                f"{np.dtype(self.dtype).name} loses {1000 * lost[worst]:.2g} meV per atom: give Batches "
                'subtract="fit", which subtracts energies of elements first, or dtype="float64".'
            )

    def _levels_of_extras(self) -> dict[str, str]:
        for name in self.extras:
            for data in self.structures:
                if name not in {**data.atom_extras, **data.system_extras, **data.info}:
                    raise ValueError(f"{data.name} has no {name!r} in arrays or info, which extras names.")
        first = self.structures[0]
        return {name: "atom" if name in first.atom_extras else "system" for name in self.extras}

    def _labels(self, data: AtomicData, levels: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, level in levels.items():
            value = label_of(data, name, level)
            if value is None:
                continue
            shape = (len(data),) if level == "atom" else ()
            if value.shape != shape:
                raise ValueError(
                    f"{data.name}: its {name} has shape {value.shape}, expected {shape}, "
                    f"one number per {level}."
                )
            found[name] = value
        return found

    def _check_sizes(self, name: str, labels: list[dict[str, Any]], model: str) -> None:
        for data, given in zip(self.structures, labels, strict=True):
            below = np.flatnonzero(np.asarray(given.get(name, 0.0)) < 0)
            if len(below):
                where = f" of atom {below[0]}" if np.ndim(given[name]) else ""
                raise ValueError(
                    f"{data.name}: its {name}{where} is {np.ravel(given[name])[below[0]]:g}, and {model} "
                    "gives sizes: make the labels absolute values, np.abs(...)."
                )

    def labelled(self, model: AbstractModel) -> set[str]:
        """Names of the results of a model for which some structure has labels."""
        # Stress counts where there is a cell, see `Loss`.
        found = {
            name
            for name in FIELDS
            if any(_is_known(getattr(d, name)) and (name != "stress" or d.pbc.all()) for d in self.structures)
        }
        for name, level in model.extra_results.items():
            if any(_is_known(label_of(data, name, level)) for data in self.structures):
                found.add(name)
        return found

    def _pack(
        self,
        required: Requirements,
        lists: list[NeighborRows | None],
        levels: dict[str, Any],
        labels: list[dict[str, Any]],
    ) -> list[_Bucket]:
        atoms = np.array([len(d) for d in self.structures])
        width = np.array([0 if rows is None else rows.index.shape[1] for rows in lists])
        edges = np.array([0 if rows is None else int((rows.index >= 0).sum()) for rows in lists])
        out = []
        for numbers in split_by_size(atoms, atoms * width, self.buckets):
            mine = [lists[i] for i in numbers]
            names = [self.structures[i].name for i in numbers]
            room = {
                key: max((getattr(rows, key) for rows in mine if rows is not None), default=0)
                for key in ("edges", "per_atom", "bonds", "triplets", "long_edges")
            }
            layout = Layout(
                systems=batch_size(
                    names,
                    atoms[numbers],
                    edges[numbers],
                    self.max_systems,
                    self.max_atoms,
                    self.max_edges,
                ),
                atoms=int(atoms[numbers].max()),
                neighbors=int(width[numbers].max()),
                images=max((len(rows.source) for rows in mine if rows is not None), default=0),
                labels=tuple((name, level, ()) for name, level in levels.items()),
                requirements=None if required.cutoff is None else required,
                **room,
            )
            rows = pack_rows(
                layout,
                [self.structures[i] for i in numbers],
                mine,
                [labels[i] for i in numbers],
                self.dtype,
            )
            out.append(_Bucket(layout, numbers, *rows))
        return out

    @property
    def _ready(self) -> list[_Bucket]:
        if self._made is None:
            raise ValueError(f"{self!r} has no neighbors yet: call fit_to(model) first, as Trainer.run does.")
        return self._made

    # -- reading ---------------------------------------------------------------------------------

    @property
    def layouts(self) -> list[Layout]:
        """The shapes of the buckets; a step compiles once for each."""
        return [bucket.layout for bucket in self._ready]

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return sum(-(-len(b.numbers) // b.layout.systems) for b in self._ready)

    def epoch(self, key: Any, epoch: int, start: int = 0) -> Iterator[PackedBatch]:
        """The batches of an epoch, each structure once, in an order that depends only on key and epoch.

        Args:
            key: a PRNG key.
            start: number of batches to skip, when a training is resumed within an epoch.
        """
        random, buckets = random_of(key, epoch), self._ready
        plan = [
            (bucket, rows)
            for bucket in buckets
            for rows in _cut(random.permutation(len(bucket.numbers)), bucket.layout.systems)
        ]
        order = random.permutation(len(plan))[start:]
        return prefetch((self._take(*plan[k]) for k in order), self._depth)

    def fingerprint(self) -> str:
        """A checksum of structures, labels and batch sizes, which checkpoints store."""
        return fingerprint([(b.layout.systems, b.numbers, b.floats, b.integers) for b in self._ready])

    def in_order(self) -> Iterator[PackedBatch]:
        """All structures once, bucket by bucket, in their order there: for validation."""
        plan = [
            (bucket, rows)
            for bucket in self._ready
            for rows in _cut(np.arange(len(bucket.numbers)), bucket.layout.systems)
        ]
        return prefetch((self._take(*entry) for entry in plan), self._depth)

    def _take(self, bucket: _Bucket, rows: Int[np.ndarray, " some"]) -> PackedBatch:
        numbers, missing = bucket.numbers[rows], bucket.layout.systems - len(rows)
        meta = Metadata(self._meta[i] for i in numbers)
        if missing:
            # Rows of any structure; those without a number are left out.
            rows = np.concatenate([rows, np.zeros(missing, rows.dtype)])
            numbers = np.concatenate([numbers, np.full(missing, -1)])
        floats, integers = bucket.floats[rows], bucket.integers[rows]
        return PackedBatch.of(floats, integers, numbers.astype(np.int32), bucket.layout, meta)


def random_of(key: Any, *numbers: int) -> np.random.Generator:
    """Random numbers that follow from a PRNG key and whole numbers alone."""
    key = as_key(key)
    words = key if key.dtype == np.uint32 else jax.random.key_data(key)
    return np.random.default_rng([*np.asarray(words).ravel().tolist(), *numbers])


def _is_known(label: Any) -> bool:
    return label is not None and bool(np.isfinite(label).any())


def no_label(where: str, name: str, known: set[str]) -> ValueError:
    """The error for a label of a loss that no structure has."""
    return ValueError(
        f"no structure of {where} has a label {name!r}, which the loss asks for; they have "
        f"{', '.join(sorted(known)) or 'no labels at all'}."
    )


def _cut(rows: Int[np.ndarray, " rows"], size: int) -> list[Int[np.ndarray, " some"]]:
    return [rows[k : k + size] for k in range(0, len(rows), size)]


def _neighbors(data: AtomicData, required: Requirements) -> NeighborRows | None:
    if required.cutoff is None:
        return None
    try:
        return neighbor_rows(data.positions, data.cell, data.pbc, required)
    except ValueError as e:
        raise ValueError(f"{data.name}: {e}.") from None


def as_batches(source: Any, **options: Any) -> Any:
    """Batches of a source; what gives batches itself is returned as it is."""
    if hasattr(source, "epoch") and hasattr(source, "in_order"):
        return source
    return Batches(source, **options)


__all__ = ["Batches", "as_batches", "no_label", "random_of"]
