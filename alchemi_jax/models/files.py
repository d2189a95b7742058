"""What files of potentials have in common: lines, units, entries, and which of their elements are wanted.

Each error is one sentence with the name of the file, the line, and what is wrong there.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers


#: One kcal/mol in eV, as LAMMPS converts its units `real` to `metal`.
KCAL_PER_MOL = 1 / 23.060549

#: Elements to take from a file: symbols, or the names that the file has for them.
Elements = Sequence[str] | Mapping[str, str] | None


class Lines:
    """Reads a file line by line, without comments and blank lines, and knows the number of the line.

    Args:
        path: of the file.
        comments: number of lines at the beginning that are comments.

    Raises:
        ValueError: if the file is no text.
    """

    def __init__(self, path: Path, comments: int = 0):
        self.path, self.number = path, comments
        try:
            self.text = path.read_text().splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path.name} is no text in UTF-8.") from None
        if len(self.text) < comments:
            raise self.error(f"it ends before the {comments} lines of its head", len(self.text))

    def error(self, message: str, number: int | None = None) -> ValueError:
        return ValueError(f"{self.path.name}, line {self.number if number is None else number}: {message}.")

    def words(self, what: str) -> list[str]:
        """Words of the next line that has any."""
        while self.number < len(self.text):
            self.number += 1
            words = self.text[self.number - 1].split("#")[0].split()
            if words:
                return words
        raise self.error(f"the file ends early, before {what}")

    def rest(self) -> Iterator[list[str]]:
        """Words of the remaining lines that have any."""
        while self.number < len(self.text):
            self.number += 1
            words = self.text[self.number - 1].split("#")[0].split()
            if words:
                yield words

    def number_of(self, word: str, what: str) -> float:
        """A finite number."""
        try:
            value = float(word.replace("D", "e").replace("d", "e"))
        except ValueError:
            raise self.error(f"{what} is {word!r}, which is no number") from None
        if not np.isfinite(value):
            raise self.error(f"{what} is {word}, which is not finite")
        return value

    def count(self, word: str, what: str) -> int:
        try:
            value = int(word)
        except ValueError:
            raise self.error(f"{what} is {word!r}, which is no whole number") from None
        if value < 1:
            raise self.error(f"{what} is {value}, it must be at least 1")
        return value

    def table(self, n: int, what: str) -> np.ndarray:
        """n numbers, from the next line on."""
        begun, found = self.number + 1, []
        while len(found) < n:
            try:
                words = self.words(what)
            except ValueError:
                raise self.error(
                    f"the file ends early, {what} (from line {begun}) has {len(found)} of {n} values"
                ) from None
            if len(found) + len(words) > n:
                raise self.error(
                    f"{what} has {n} values and ends on this line, but {len(words) - n + len(found)} more "
                    "follow on it"
                )
            found += [self.number_of(word, f"a value of {what}") for word in words]
        return np.array(found)


def energy_unit(lines: Lines) -> float:
    """eV per unit of energy of a file, by the words `UNITS: metal` or `UNITS: real` of its first line.

    Raises:
        ValueError: for other units.
    """
    found = re.search(r"UNITS:\s*(\S+)", lines.text[0]) if lines.text else None
    unit = "metal" if found is None else found.group(1).lower().rstrip(",;")
    if unit not in ("metal", "real"):
        raise lines.error(f"its units are {unit!r}; only 'metal' and 'real' can be read", 1)
    return KCAL_PER_MOL if unit == "real" else 1.0


def choose(path: Path, names: Sequence[str], elements: Elements) -> dict[str, str]:
    """Chemical symbols of the elements to take from a file, and the name of each in the file.

    Args:
        path: of the file.
        names: of the file, in its order.
        elements: as asked for; None is all of them.

    Raises:
        ValueError: for a name that the file does not have, or one that is no chemical symbol.
    """
    have = ", ".join(names)
    if elements is None:
        odd = [name for name in names if name not in atomic_numbers]
        if odd:
            symbol = re.split(r"[^A-Za-z]", odd[0])[0]
            symbol = symbol if symbol in atomic_numbers else "Si"
            raise ValueError(
                f"{path.name}: {odd[0]!r} is no chemical symbol; say which of its names ({have}) stands "
                f"for which element, for example elements={{{symbol!r}: {odd[0]!r}}}."
            )
        return {name: name for name in names}
    if isinstance(elements, str):
        raise ValueError(f"elements must be a list of symbols, such as [{elements!r}], not {elements!r}.")
    wanted = dict(elements) if isinstance(elements, Mapping) else {name: name for name in elements}
    if not wanted:
        raise ValueError(f"{path.name}: elements is empty; the file has {have}.")
    for symbol, name in wanted.items():
        if name not in names:
            raise ValueError(f"{path.name} has no {name}; it has {have}.")
        if symbol not in atomic_numbers:
            raise ValueError(f"{path.name}: {symbol!r} in elements is no chemical symbol.")
    return wanted


def read_entries(
    path: Path, parameters: Sequence[str], elements: Elements
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Entries of three elements and their parameters, one or several lines each, from files of LAMMPS.

    Args:
        path: of the file.
        parameters: names of the numbers of an entry, in their order.
        elements: those to take from the file.

    Returns:
        The parameters by three chemical symbols, in the units of the file.

    Raises:
        ValueError: naming file and line, for an entry that breaks off, goes on too long, is there twice, or
            is not all numbers; for elements that the file does not have.
    """
    lines = Lines(path)
    size = 3 + len(parameters)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    while (entry := next(lines.rest(), None)) is not None:
        begun = lines.number
        while len(entry) < size:
            try:
                more = lines.words("the end of an entry")
            except ValueError:
                raise lines.error(
                    f"the entry {' '.join(entry[:3])} breaks off after {len(entry)} of {size} words",
                    begun,
                ) from None
            entry = entry + more
        name = "-".join(entry[:3])
        if len(entry) > size:
            raise lines.error(f"the entry {name} has {len(entry)} words, but an entry has {size}")
        key = (entry[0], entry[1], entry[2])
        if key in found:
            raise lines.error(f"there is a second entry {name}", begun)
        numbers = [
            lines.number_of(word, f"{parameter} of {name}")
            for word, parameter in zip(entry[3:], parameters, strict=True)
        ]
        found[key] = dict(zip(parameters, numbers, strict=True))
    if not found:
        raise ValueError(f"{path.name} has no entries.")
    names = list(dict.fromkeys(name for key in found for name in key))
    chosen = choose(path, names, elements)
    back: dict[str, list[str]] = {}
    for symbol, name in chosen.items():
        back.setdefault(name, []).append(symbol)
    out = {}
    for key, values in found.items():
        for a in back.get(key[0], ()):
            for b in back.get(key[1], ()):
                out |= {(a, b, c): values for c in back.get(key[2], ())}
    return out


__all__ = ["KCAL_PER_MOL", "Elements", "Lines", "choose", "energy_unit", "read_entries"]
