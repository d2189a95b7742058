"""Structures with labels for `train`: from the files of the settings, in two sets, each structure with its
hash."""

import dataclasses
import glob
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.cli.inputs import Structure, content_hash
from alchemi_jax.cli.outcome import UsageError, sentence
from alchemi_jax.cli.train_settings import TrainData
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.training.data import Batches
from alchemi_jax.training.mixture import Mixture
from alchemi_jax.training.references import without_elements
from alchemi_jax.training.source import FIELDS, read_labelled


#: One structure: where it is from, and itself.
Labelled = tuple[Structure, AtomicData]


@dataclasses.dataclass
class Sets:
    """What a training reads.

    Attributes:
        train: for each entry of `data.train` its structures. validation: None without.
        weighted: whether it counts which entry a structure is of.
        twice: number of structures for validation that are for training, too.
    """

    train: list[list[Labelled]]
    validation: list[Labelled] | None
    weighted: bool = False
    twice: int = 0

    @property
    def structures(self) -> list[Structure]:
        """All of them, in order; the hash also says what each is for."""
        parts = [(f"train {k if self.weighted else ''}", part) for k, part in enumerate(self.train)]
        parts += [("validation", self.validation or [])]
        return [
            structure._replace(sha256=_sha(f"{role} {structure.sha256}"))
            for role, part in parts
            for structure, _ in part
        ]


def files_of(data: TrainData) -> list[str]:
    """All files that are read.

    Raises:
        UsageError: for wildcards that match no file.
    """
    paths = [*data.train, *(data.validation if isinstance(data.validation, list) else ())]
    return [file for path in paths for file in _files(path)]


def _files(path: str) -> list[str]:
    try:
        if Path(path).exists() or not glob.has_magic(path):
            return [path]
        found = sorted(glob.glob(path, recursive=True))
    except (OSError, ValueError):
        found = []
    if not found:
        raise UsageError(f"no file matches {path!r}, which data names.")
    return found


def read_sets(data: TrainData, seed: int) -> Sets:
    """Read all structures, and keep some for validation if a fraction is asked for.

    Raises:
        UsageError: naming file and structure, if one cannot be read.
    """
    train = [_read(path) for path in data.train]
    validation = None
    if isinstance(data.validation, list):
        validation = [entry for path in data.validation for entry in _read(path)]
    elif data.validation is not None:
        train, validation = _split(train, data.validation, seed)
    known = {structure.sha256 for part in train for structure, _ in part}
    twice = sum(structure.sha256 in known for structure, _ in validation or ())
    return Sets(train, validation, data.weights is not None, twice)


def _read(path: str) -> list[Labelled]:
    out: list[Labelled] = []
    for file in _files(path):
        try:
            structures, _ = read_labelled(file)
        except ValueError as e:
            raise UsageError(sentence(e)) from None
        out += [(Structure(file, k, labelled_hash(d)), d) for k, d in enumerate(structures)]
    return out


def labelled_hash(data: AtomicData) -> str:
    """SHA-256 of a structure and its labels."""
    labels = b"".join(np.asarray(getattr(data, name), "<f8").tobytes() for name in FIELDS)
    return _sha(f"{content_hash(data)} {hashlib.sha256(labels).hexdigest()}")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _split(
    train: list[list[Labelled]], fraction: float, seed: int
) -> tuple[list[list[Labelled]], list[Labelled]]:
    """A fraction of each entry is kept for validation, at least one structure of all; both in order."""
    random, kept, validation = np.random.default_rng([seed, 25]), [], []
    total = sum(map(len, train))
    if total < 2:
        raise UsageError("data.validation is a fraction, but data.train has one structure alone.")
    for k, part in enumerate(train):
        n = round(fraction * len(part))
        if k + 1 == len(train) and not validation:
            n = max(n, 1)
        # Something is left to train on.
        n = min(n, len(part) - 1)
        chosen = set(random.permutation(len(part))[:n].tolist())
        kept.append([entry for i, entry in enumerate(part) if i not in chosen])
        validation += [entry for i, entry in enumerate(part) if i in chosen]
    if not validation:
        raise UsageError(f"data.validation is {fraction}, which is no structure of data.train.")
    return kept, validation


def batches_of(data: TrainData, sets: Sets) -> tuple[Any, Batches | None]:
    """Batches for training and validation, without neighbors.

    Raises:
        UsageError: naming a structure that cannot be used.
    """
    options: dict[str, Any] = {
        "max_systems": data.max_systems,
        "max_atoms": data.max_atoms,
        "max_edges": data.max_edges,
        "dtype": data.dtype,
    }

    def batches(part: Sequence[Labelled], name: str) -> Batches:
        found = Batches([structure for _, structure in part], **options)
        found.name = name
        return found

    try:
        if data.subtract is not None:
            # The same of all sources.
            every = [structure for part in sets.train for _, structure in part]
            options["subtract"] = without_elements(every, data.subtract)[1]
        validation = None if sets.validation is None else batches(sets.validation, "data.validation")
        if data.weights is None:
            return batches([entry for part in sets.train for entry in part], "data.train"), validation
        pairs = zip(sets.train, data.weights, data.train, strict=True)
        return Mixture([(batches(part, name), weight) for part, weight, name in pairs]), validation
    except ValueError as e:
        raise UsageError(sentence(e)) from None


def warn_twice(sets: Sets) -> None:
    """Say if structures are in both sets."""
    if sets.twice:
        n = sets.twice
        which = f"{n} structure{'s are' if n > 1 else ' is'}"
        warnings.warn(
            f"{which} in data.validation and also in data.train: the errors on them tell little.",
            stacklevel=2,
        )
