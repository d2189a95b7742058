"""Parameters by element and by pair of elements, and checks that a batch has them."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from jaxtyping import Array, Float, Int

from alchemi_jax.models.registry import advice
from alchemi_jax.models.symbols import symbols_of
from alchemi_jax.parameters import as_parameter
from alchemi_jax.systems.batch import Batch
from alchemi_jax.transforms import is_traced


#: One number, or one for each atomic number from 0 to 118, NaN where there is none.
ByElement = Float[Array, ""] | Float[Array, "*runs 119"]


def atomic_number(key: str | int) -> int:
    """The atomic number of a chemical symbol; a number is returned as it is.

    Raises:
        ValueError: for an unknown symbol or number.
    """
    if isinstance(key, str):
        if key not in atomic_numbers:
            raise ValueError(f"{key!r} is no chemical symbol.")
        return atomic_numbers[key]
    integer = isinstance(key, int | np.integer) and not isinstance(key, bool)
    if not integer or not 0 <= key < len(chemical_symbols):
        raise ValueError(f"{key!r} is no atomic number, 0 to {len(chemical_symbols) - 1}.")
    return int(key)


def check_numbers(name: str, numbers: Any, sign: str | None = None, missing: bool = False) -> None:
    """Check the values of a parameter; what is traced has none to look at.

    Args:
        name: of the parameter, such as "epsilon".
        numbers: an array.
        sign: "positive", "zero or positive", or None for any.
        missing: whether NaN means that there is no parameter, so that it is allowed, if not everywhere.

    Raises:
        ValueError: naming the parameter and the first value that it cannot have.
    """
    if is_traced(numbers):
        return
    found = np.asarray(numbers)
    good = np.isfinite(found)
    if sign is not None:
        good &= (found > 0) | ((found == 0) & (sign == "zero or positive"))
    if missing:
        if found.size and np.isnan(found).all():
            raise ValueError(f"{name} has no values, all are NaN.")
        good |= np.isnan(found)
    if not good.all():
        what = f"{sign} and finite" if sign else "finite"
        raise ValueError(f"{name} must be {what}, not {found[~good].flat[0]}.")


def _number(name: str, value: Any, sign: str | None) -> float:
    """A number from an entry of a dict."""
    number = as_parameter(value, name)
    if number.ndim:
        raise ValueError(f"{name} must have a number for each entry, not an array of shape {number.shape}.")
    if is_traced(number):
        raise ValueError(f"{name} as a dict holds plain numbers; give an array where they are traced.")
    check_numbers(name, number, sign)
    return float(number)


def by_element(name: str, sign: str | None = None) -> Callable[[Any], ByElement]:
    """A converter: a number becomes a scalar leaf, a dict of elements a table over the atomic numbers 0 to
    118 (NaN where there is no parameter). `sign` as for `check_numbers`."""

    def convert(value: Any) -> ByElement:
        if isinstance(value, Mapping):
            if not value:
                raise ValueError(f"{name} has no elements.")
            table = np.full(len(chemical_symbols), np.nan)
            for key, v in value.items():
                table[atomic_number(key)] = _number(name, v, sign)
            return jnp.asarray(table)
        array = as_parameter(value, name)
        if array.ndim and array.shape[-1] != len(chemical_symbols):
            raise ValueError(
                f"{name} must be a number, a dict of elements, or an array over the atomic numbers "
                f"0 to {len(chemical_symbols) - 1}; its shape is {array.shape}."
            )
        check_numbers(name, array, sign, missing=array.ndim > 0)
        return array

    return convert


class ByPair(eqx.Module):
    """A parameter for each pair of elements, a symmetric matrix.

    Attributes:
        values: [elements, elements], NaN for pairs without a value.
        elements: atomic numbers.
    """

    values: Float[Array, "*runs elements elements"]
    elements: tuple[int, ...] = eqx.field(static=True)

    def types(self, numbers: Int[Array, " atoms"]) -> Int[Array, " atoms"]:
        """Row of the element of each atom (the last row for an element that is not there)."""
        return types_of(self.elements, numbers)

    def of(self, a: Int[Array, "*#pairs"], b: Int[Array, "*#pairs"]) -> Float[Array, "*#pairs"]:
        """Values for pairs of rows."""
        return self.values.reshape(-1)[a * len(self.elements) + b]

    def pairs(self) -> list[str]:
        """Pairs that have a value, as "Mg-O"."""
        rows, columns = np.nonzero(np.triu(np.isfinite(np.asarray(self.values))))
        return [_pair(self.elements[i], self.elements[j]) for i, j in zip(rows, columns, strict=True)]

    def __repr__(self) -> str:
        if is_traced(self.values) or np.ndim(self.values) != 2:
            return f"ByPair({', '.join(chemical_symbols[z] for z in self.elements)})"
        found = np.asarray(self.values)
        rows, columns = np.nonzero(np.triu(np.isfinite(found)))
        names = zip(self.pairs(), found[rows, columns], strict=True)
        return "{" + ", ".join(f"{pair}: {v:.7g}" for pair, v in names) + "}"


def _pair(a: int, b: int) -> str:
    return f"{chemical_symbols[a]}-{chemical_symbols[b]}"


def by_pair(name: str, sign: str | None = None) -> Callable[[Any], Any]:
    """A converter: a number becomes a scalar leaf, a dict of pairs of elements a `ByPair`. `sign` as for
    `check_numbers`."""

    def convert(value: Any) -> Any:
        if not isinstance(value, Mapping):
            if isinstance(value, ByPair):
                return value
            number = as_parameter(value, name)
            if number.ndim:
                raise ValueError(
                    f"{name} must be a number or a dict of pairs of elements; its shape is {number.shape}."
                )
            check_numbers(name, number, sign)
            return number
        wanted: dict[tuple[int, int], Any] = {}
        for key, v in value.items():
            if isinstance(key, str) or len(key) != 2:
                raise ValueError(f'{name} must be keyed by pairs such as ("Mg", "O"), not {key!r}.')
            a, b = sorted(atomic_number(k) for k in key)
            v = _number(name, v, sign)
            if wanted.setdefault((a, b), v) != v:
                raise ValueError(f"{name} has two values for {_pair(a, b)}.")
        elements = tuple(sorted({z for pair in wanted for z in pair}))
        if not elements:
            raise ValueError(f"{name} has no pairs of elements.")
        table = np.full((len(elements),) * 2, np.nan)
        for (a, b), v in wanted.items():
            i, j = elements.index(a), elements.index(b)
            table[i, j] = table[j, i] = v
        return ByPair(jnp.asarray(table), elements)

    return convert


def types_of(elements: tuple[int, ...], numbers: Int[Array, " atoms"]) -> Int[Array, " atoms"]:
    """Index of the element of each atom in `elements` (the last one for an element that is not there)."""
    table = np.full(len(chemical_symbols), len(elements) - 1, np.int32)
    table[list(elements)] = np.arange(len(elements))
    return jnp.asarray(table)[numbers]


# -- checks ------------------------------------------------------------------------------------


class UnknownElementError(ValueError):
    """A model does not know an element of its input.

    Attributes:
        problem: what is wrong, without a stop at its end; the message goes on with the models that fit.
    """

    def __init__(self, problem: str, numbers: Any):
        super().__init__(f"{problem}. {advice(np.unique(numbers).tolist())}.")
        self.problem = problem


def check_elements(model: Any, batch: Batch, name: str, known: Any) -> None:
    """Refuses a batch with an element that has no parameters.

    Args:
        name: of the parameter, such as "epsilon".
        known: atomic numbers, or a table over atomic numbers that is finite where there are parameters.

    Raises:
        UnknownElementError: a ValueError that names the system, the element, the atom, the elements that
            have parameters, and registered models that know all elements of the system.
    """
    if isinstance(known, tuple):
        have = np.isin(np.arange(len(chemical_symbols)), known)
    else:
        have = np.isfinite(np.asarray(known))
    numbers = np.asarray(batch.numbers)[np.asarray(batch.atom_mask)]
    owners = np.asarray(batch.batch_idx)
    missing = ~have[numbers]
    if missing.any():
        atom = int(np.argmax(missing))
        system = int(owners[atom])
        raise UnknownElementError(
            f"{batch.name_of(system)}: {type(model).__name__} has no {name} for "
            f"{chemical_symbols[numbers[atom]]} (atom {atom - int(batch.first_atom[system])}); "
            f"it has {symbols_of(np.flatnonzero(have).tolist())}",
            numbers[owners[: len(numbers)] == system],
        )


def check_pairs(model: Any, batch: Batch, name: str, table: Any) -> None:
    """Refuses a batch in which a pair of elements of one system has no parameter.

    Raises:
        ValueError: naming the system, the pair, and the pairs that have parameters.
    """
    if not isinstance(table, ByPair):
        return
    values = np.asarray(table.values)
    numbers, owners = np.asarray(batch.numbers), np.asarray(batch.batch_idx)
    present = np.unique(np.stack([owners, numbers])[:, np.asarray(batch.atom_mask)], axis=1)
    for system in np.unique(present[0]):
        inside = present[1][present[0] == system].tolist()
        for n, a in enumerate(inside):
            for b in inside[n:]:
                known = a in table.elements and b in table.elements
                if known and np.isfinite(values[table.elements.index(a), table.elements.index(b)]):
                    continue
                raise ValueError(
                    f"{batch.name_of(int(system))}: {type(model).__name__} has no {name} for {_pair(a, b)}; "
                    f"it has {', '.join(table.pairs())}. A pair without interaction must say so, by a zero."
                )


__all__ = [
    "ByElement",
    "ByPair",
    "UnknownElementError",
    "atomic_number",
    "by_element",
    "by_pair",
    "check_elements",
    "check_numbers",
    "check_pairs",
    "types_of",
]
