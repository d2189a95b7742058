"""Converters and checks of parameters, and the printed form of Modules with parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Inexact

from alchemi_jax.html import table
from alchemi_jax.transforms import is_traced


def as_parameter(value: Any) -> Inexact[Array, "..."]:
    """A number that may be swept, mapped over or differentiated, as an array leaf.

    Numbers of Python and numpy, and arrays of one number and no dimension, become weakly typed arrays, which
    take the dtype of the batch: which of them it is makes no difference to compiled code.
    """
    if isinstance(value, bool | int | np.integer | np.floating) or _is_number(value):
        value = float(value)
    if isinstance(value, float | complex):
        # Explicitly put, which a transfer guard of the user allows.
        return jax.device_put(value)
    array = value if isinstance(value, jax.Array) else jax.device_put(_as_numpy(value))
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def _is_number(value: Any) -> bool:
    """Whether a value is an array of one real number that is known, without dimensions."""
    if is_traced(value) or not isinstance(value, jax.Array | np.ndarray) or value.ndim:
        return False
    return bool(jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))


def _as_numpy(value: Any) -> np.ndarray:
    """Any number of numbers as an array of numpy; lists of tracers stay with JAX."""
    return jnp.asarray(value) if is_traced(value) else np.asarray(value)


def positive(name: str, zero: bool = False) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf. It raises ValueError, naming the parameter, for values not positive."""

    def convert(value: Any) -> Inexact[Array, "..."]:
        array = as_parameter(value)
        if not is_traced(array):
            numbers = np.asarray(array)
            good = numbers >= 0 if zero else numbers > 0
            if not np.all(good & np.isfinite(numbers)):
                what = "zero or positive" if zero else "positive"
                raise ValueError(f"{name} must be {what}, not {numbers.tolist()}.")
        return array

    return convert


def finite(name: str) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf. It raises ValueError, naming the parameter, for infinities and NaN."""

    def convert(value: Any) -> Inexact[Array, "..."]:
        array = as_parameter(value)
        if not is_traced(array) and not np.all(np.isfinite(np.asarray(array))):
            raise ValueError(f"{name} must be finite, not {np.asarray(array).tolist()}.")
        return array

    return convert


def one_of(name: str, choices: tuple[str, ...]) -> Callable[[Any], str]:
    """A converter for names. It raises ValueError for a name that is not among the choices."""

    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return value

    return convert


def positive_length(name: str) -> Callable[[Any], float]:
    """A converter to a float, for lengths (Å) that determine shapes and so are static."""

    def convert(value: Any) -> float:
        value = float(value)
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be a positive length in Å, not {value}.")
        return value

    return convert


def as_count(name: str) -> Callable[[Any], Any]:
    """A converter of counts to integer array leaves, so that changing one does not recompile."""

    def convert(value: Any) -> Any:
        if value is None or is_traced(value):
            return value
        number = np.asarray(value)
        if number.dtype.kind not in "iu" or number.ndim or not 0 < number < 2**31:
            raise ValueError(f"{name} must be a positive int, not {value!r}.")
        return jax.device_put(number.astype(np.int32))

    return convert


def natural(name: str) -> Callable[[Any], int]:
    """A converter to a positive int, for counts that determine shapes and so are static."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive int, not {value!r}.")
        return int(value)

    return convert


class Described(eqx.Module):
    """A Module with a repr that gives the values of its parameters, like a methods section."""

    def __repr__(self) -> str:
        parts = (f"{f.name}={_show(getattr(self, f.name, None))}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [(f.name, _show(getattr(self, f.name, None))) for f in dataclasses.fields(self) if f.repr]
        return table((), rows, type(self).__name__)


def _show(value: Any) -> str:
    if is_traced(value) or not isinstance(value, jax.Array | np.ndarray):
        return repr(value)
    numbers = np.asarray(value)
    if numbers.ndim == 0:
        return f"{numbers.item():.7g}"
    if numbers.ndim == 1 and len(numbers) == len(chemical_symbols) and np.isnan(numbers).any():
        known = np.flatnonzero(np.isfinite(numbers))
        return "{" + ", ".join(f"{chemical_symbols[z]}: {numbers[z]:.7g}" for z in known) + "}"
    if numbers.size <= 8:
        return np.array2string(numbers, separator=", ", precision=7)
    return f"{numbers.dtype}{list(numbers.shape)}"
