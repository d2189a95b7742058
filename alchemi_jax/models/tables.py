"""EAM potential files: funcfl, setfl (eam.alloy) and Finnis-Sinclair (eam.fs)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from alchemi_jax.models.files import Elements, Lines, choose, energy_unit


#: eV Å of a product of two charges of funcfl files: the hartree and the bohr, in LAMMPS's digits.
CHARGES = 27.2 * 0.529


@dataclasses.dataclass(frozen=True)
class EAMTables:
    """Tables of an EAM potential, as numpy arrays.

    Attributes:
        elements: atomic numbers.
        density_step, distance_step: steps of the two grids, the latter in Å.
        embedding: [elements, n_density], eV, on the grid 0, density_step, ...
        density: [elements, elements, n_distance], at an atom of the first element from an atom of the
            second, on the grid 0, distance_step, ... (Å).
        pair: [elements, elements, n_distance], r phi(r), eV Å.
        cutoff: Å.
        largest_density: the density from which on F is a straight line; by default the end of its table.
    """

    elements: tuple[int, ...]
    embedding: np.ndarray
    density: np.ndarray
    pair: np.ndarray
    density_step: float
    distance_step: float
    cutoff: float
    largest_density: float | None = None


#: Ends of names of files that look like these forms and are not.
_OTHERS = {
    ".adp": "angular-dependent (adp)",
    ".cdeam": "concentration-dependent (eam/cd)",
    ".eam.he": "eam/he",
    ".poly": "several models in one file (.poly)",
}


def form_of(path: Path) -> str:
    """'funcfl', 'setfl' or 'fs', by the name of the file.

    Raises:
        ValueError: for other names.
    """
    forms = {".eam": "funcfl", ".funcfl": "funcfl", ".alloy": "setfl", ".setfl": "setfl", ".fs": "fs"}
    name = path.name.lower()
    for end, what in _OTHERS.items():
        if name.endswith(end):
            raise ValueError(f"{path.name} is of another kind, {what}, which EAM does not read.")
    if path.suffix.lower() not in forms:
        raise ValueError(
            f"{path.name}: cannot tell the form of the file; say form='funcfl' (.eam), 'setfl' "
            "(.eam.alloy) or 'fs' (.eam.fs)."
        )
    return forms[path.suffix.lower()]


def slopes(values: np.ndarray) -> np.ndarray:
    """Derivatives on a grid with steps of one: by five points, next to the ends by three, there by two."""
    out = np.empty_like(values)
    out[..., 2:-2] = (values[..., :-4] - values[..., 4:] + 8 * (values[..., 3:-1] - values[..., 1:-3])) / 12
    out[..., 1] = (values[..., 2] - values[..., 0]) / 2
    out[..., -2] = (values[..., -1] - values[..., -3]) / 2
    out[..., 0] = values[..., 1] - values[..., 0]
    out[..., -1] = values[..., -1] - values[..., -2]
    return out


@dataclasses.dataclass(frozen=True)
class _Grid:
    n_density: int
    density_step: float
    n_distance: int
    distance_step: float
    cutoff: float


def _grid(lines: Lines) -> _Grid:
    words = lines.words("the line of the grids")
    if len(words) < 5:
        raise lines.error(
            f"the line of the grids has {len(words)} words, it must have five: a number of densities and "
            "their step, a number of distances and their step, the cutoff"
        )
    counts = (
        lines.count(words[0], "the number of densities"),
        lines.count(words[2], "the number of distances"),
    )
    names = ("the step of the densities", "the step of the distances", "the cutoff")
    steps = [lines.number_of(word, name) for word, name in zip((words[1], *words[3:5]), names, strict=True)]
    for value, name in zip(steps, names, strict=True):
        if value <= 0:
            raise lines.error(f"{name} is {value:g}, it must be positive")
    if min(counts) < 5:
        raise lines.error(f"a table has {min(counts)} points, it must have at least five")
    return _Grid(counts[0], steps[0], counts[1], steps[1], steps[2])


def _end(lines: Lines) -> None:
    left = next(lines.rest(), None)
    if left is not None:
        raise lines.error("there are more lines than the head of the file announces: is it of another form?")


def _atomic_line(lines: Lines, name: str) -> int:
    """The atomic number of the line that begins the tables of an element."""
    words = lines.words(f"the tables of {name}")
    if len(words) < 2:
        raise lines.error(f"the line of {name} needs an atomic number and a mass")
    lines.number_of(words[1], f"the mass of {name}")
    return int(lines.number_of(words[0], f"the atomic number of {name}"))


def _resampled(values: np.ndarray, step: float, x: np.ndarray) -> np.ndarray:
    """Values at x by the cubic through the four nearest points of a table."""
    p = x / step
    k = np.clip(p.astype(int), 1, len(values) - 3)
    p = np.minimum(p - k, 2.0)
    nodes = (-1, 0, 1, 2)
    total = np.zeros_like(p)
    for node in nodes:
        weight = np.ones_like(p)
        for other in nodes:
            if other != node:
                weight = weight * (p - other) / (node - other)
        total += weight * values[k + node]
    return total


def read_funcfl(paths: Sequence[Path], elements: Sequence[str] | None = None) -> EAMTables:
    """Reads files of one element each.

    As in LAMMPS's `eam`, all tables are brought to one grid, with the largest steps and ranges of the files
    and one point less, by cubics through four points. Pairs have the product of the effective charges.

    Args:
        paths: of the files.
        elements: symbols, one for each file; by default as the atomic numbers of the files say.

    Raises:
        ValueError: naming file and line.
    """
    if elements is not None and (isinstance(elements, str) or len(elements) != len(paths)):
        raise ValueError(f"elements must have a symbol for each of the {len(paths)} funcfl files.")
    found, grids, tables = [], [], []
    for n, path in enumerate(paths):
        lines = Lines(path, 1)
        unit = energy_unit(lines)
        number = _atomic_line(lines, "the element")
        if elements is not None:
            number = atomic_numbers.get(elements[n], 0)
        if not 0 < number < len(chemical_symbols):
            raise lines.error(f"{number} is no atomic number; name the element by elements=")
        if number in found:
            raise lines.error(f"this is the second file for {chemical_symbols[number]}")
        found.append(number)
        grid = _grid(lines)
        embedding = unit * lines.table(grid.n_density, "the embedding function")
        charge = unit**0.5 * lines.table(grid.n_distance, "the effective charge")
        tables.append((embedding, charge, lines.table(grid.n_distance, "the density")))
        grids.append(grid)
        _end(lines)
    density_step, distance_step = max(g.density_step for g in grids), max(g.distance_step for g in grids)
    largest = max((g.n_density - 1) * g.density_step for g in grids)
    furthest = max((g.n_distance - 1) * g.distance_step for g in grids)
    rho = density_step * np.arange(int(largest / density_step + 0.5))
    r = distance_step * np.arange(int(furthest / distance_step + 0.5))
    both = list(zip(tables, grids, strict=True))
    embedding = np.array([_resampled(t[0], g.density_step, rho) for t, g in both])
    charge = np.array([_resampled(t[1], g.distance_step, r) for t, g in both])
    density = np.array([_resampled(t[2], g.distance_step, r) for t, g in both])
    n = len(found)
    return EAMTables(
        tuple(found),
        embedding,
        np.broadcast_to(density[None], (n, n, len(r))),
        CHARGES * charge[:, None] * charge[None],
        density_step,
        distance_step,
        max(g.cutoff for g in grids),
        largest,
    )


def read_setfl(path: Path, by_pair: bool, elements: Elements = None) -> EAMTables:
    """Reads a file of any number of elements.

    With `by_pair` (eam.fs) the density depends on both elements: the k-th table in the section of element j
    is the density that an atom of element j makes at an atom of element k. The elements are those of the
    fourth line; the atomic numbers of the file are not used, since in many files they mean nothing.

    Args:
        path: of the file.
        by_pair: whether the densities are by pair.
        elements: those to take from the file, by default all.

    Raises:
        ValueError: naming file and line.
    """
    lines = Lines(path, 3)
    unit = energy_unit(lines)
    words = lines.words("the line of the elements")
    n, names = lines.count(words[0], "the number of elements"), words[1:]
    if len(names) != n:
        raise lines.error(f"{n} elements are announced, but there are {len(names)} names")
    if len(set(names)) < n:
        raise lines.error(f"an element is there twice: {' '.join(names)}")
    grid = _grid(lines)
    embedding = []
    density = np.zeros((n, n, grid.n_distance))
    for j, name in enumerate(names):
        _atomic_line(lines, name)
        embedding.append(unit * lines.table(grid.n_density, f"the embedding function of {name}"))
        if by_pair:
            for i, other in enumerate(names):
                density[i, j] = lines.table(grid.n_distance, f"the density of {name} at {other}")
        else:
            density[:, j] = lines.table(grid.n_distance, f"the density of {name}")
    pair = np.zeros((n, n, grid.n_distance))
    for i in range(n):
        for j in range(i + 1):
            what = f"the pair function of {names[i]} and {names[j]}"
            pair[i, j] = pair[j, i] = unit * lines.table(grid.n_distance, what)
    _end(lines)
    chosen = choose(path, names, elements)
    rows = [names.index(name) for name in chosen.values()]
    square = np.ix_(rows, rows)
    return EAMTables(
        tuple(atomic_numbers[symbol] for symbol in chosen),
        np.array(embedding)[rows],
        density[square],
        pair[square],
        grid.density_step,
        grid.distance_step,
        grid.cutoff,
    )


__all__ = ["EAMTables", "form_of", "read_funcfl", "read_setfl", "slopes"]
