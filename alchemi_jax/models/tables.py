"""EAM potential files: funcfl, setfl (eam.alloy) and Finnis-Sinclair (eam.fs)."""

import dataclasses
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from alchemi_jax.units import COULOMB


@dataclasses.dataclass(frozen=True)
class EAMTables:
    """The contents of an EAM file, as numpy arrays.

    Attributes:
        elements: atomic numbers.
        embedding: [elements, n_density], eV, on the grid 0, density_step, ...
        density: [elements, elements, n_distance], at an atom of the first element from an atom of the
            second, on the grid 0, distance_step, ... (Å).
        pair: [elements, elements, n_distance], r phi(r), eV Å.
        cutoff: Å.
    """

    elements: tuple[int, ...]
    embedding: np.ndarray
    density: np.ndarray
    pair: np.ndarray
    density_step: float
    distance_step: float
    cutoff: float


def form_of(path: Path) -> str:
    """'funcfl', 'setfl' or 'fs', by the name of the file.

    Raises:
        ValueError: for other names.
    """
    suffix = path.suffix.lower()
    forms = {".eam": "funcfl", ".funcfl": "funcfl", ".alloy": "setfl", ".setfl": "setfl", ".fs": "fs"}
    if suffix not in forms:
        raise ValueError(
            f"{path.name}: cannot tell the form of the file; say form='funcfl' (.eam), 'setfl' "
            "(.eam.alloy) or 'fs' (.eam.fs)."
        )
    return forms[suffix]


class _Words:
    """Reads the words of a file one after another, without its comment lines."""

    def __init__(self, path: Path, comments: int):
        lines = path.read_text().splitlines()[comments:]
        self.words = " ".join(line.split("#")[0] for line in lines).split()
        self.path, self.at = path, 0

    def word(self) -> str:
        self.at += 1
        if self.at > len(self.words):
            raise self.short()
        return self.words[self.at - 1]

    def number(self) -> float:
        word = self.word()
        try:
            return float(word.replace("D", "e").replace("d", "e"))
        except ValueError as error:
            raise ValueError(f"{self.path.name}: expected a number, found {word!r}.") from error

    def count(self) -> int:
        return int(self.number())

    def table(self, n: int) -> np.ndarray:
        found = self.words[self.at : self.at + n]
        self.at += n
        if len(found) < n:
            raise self.short()
        try:
            return np.array([w.replace("D", "e").replace("d", "e") for w in found], float)
        except ValueError as error:
            raise ValueError(f"{self.path.name}: not all of a table are numbers: {error}.") from error

    def short(self) -> ValueError:
        return ValueError(f"{self.path.name} ends early: it has {len(self.words)} values.")

    def end(self) -> None:
        if self.at < len(self.words):
            raise ValueError(
                f"{self.path.name} has {len(self.words)} values, {len(self.words) - self.at} more than its "
                "header announces: is it of another form?"
            )


def _grid(words: _Words) -> tuple[int, float, int, float, float]:
    return (
        words.count(),
        words.number(),
        words.count(),
        words.number(),
        words.number(),
    )


def read_funcfl(paths: list[Path]) -> EAMTables:
    """Reads files of one element each. Pairs of different elements have the product of the effective charges,
    as in LAMMPS's `eam`."""
    elements, embedding, density, charge, grids = [], [], [], [], []
    for path in paths:
        words = _Words(path, 1)
        elements.append(words.count())
        for _ in range(3):
            words.word()
        grid = _grid(words)
        embedding.append(words.table(grid[0]))
        charge.append(words.table(grid[2]))
        density.append(words.table(grid[2]))
        words.end()
        grids.append(grid)
    if len(set(grids)) > 1:
        names = ", ".join(p.name for p in paths)
        raise ValueError(f"{names} have different grids or cutoffs: make one setfl file of them.")
    _, density_step, _, distance_step, cutoff = grids[0]
    z = np.array(charge)
    return EAMTables(
        tuple(elements),
        np.array(embedding),
        np.broadcast_to(np.array(density)[None], (len(z), *z.shape)),
        COULOMB * z[:, None] * z[None],
        density_step,
        distance_step,
        cutoff,
    )


def read_setfl(path: Path, by_pair: bool) -> EAMTables:
    """Reads a file of any number of elements.

    With `by_pair` (eam.fs) the density depends on both elements: the k-th table in the section of element j
    is the density that an atom of element j makes at an atom of element k.
    """
    words = _Words(path, 3)
    n = words.count()
    names = [words.word() for _ in range(n)]
    n_density, density_step, n_distance, distance_step, cutoff = _grid(words)
    elements, embedding = [], []
    density = np.zeros((n, n, n_distance))
    for j in range(n):
        elements.append(words.count())
        if names[j] in chemical_symbols and chemical_symbols.index(names[j]) != elements[j]:
            raise ValueError(f"{path.name} calls {names[j]} the element of atomic number {elements[j]}.")
        for _ in range(3):
            words.word()
        embedding.append(words.table(n_density))
        if by_pair:
            density[:, j] = words.table(n * n_distance).reshape(n, n_distance)
        else:
            density[:, j] = words.table(n_distance)
    pair = np.zeros((n, n, n_distance))
    for i in range(n):
        for j in range(i + 1):
            pair[i, j] = pair[j, i] = words.table(n_distance)
    words.end()
    return EAMTables(tuple(elements), np.array(embedding), density, pair, density_step, distance_step, cutoff)


__all__ = ["EAMTables", "form_of", "read_funcfl", "read_setfl"]
