"""Converters and checks of parameters, and the printed form of Modules with parameters."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import Array, Float, Inexact

from alchemi_jax.html import table
from alchemi_jax.transforms import is_traced


#: A number, or one value per system.
Parameter = Float[Array, ""] | Float[Array, " systems"]


def as_parameter(value: Any, name: str = "a parameter") -> Inexact[Array, "..."]:
    """The value as an array leaf, which can be swept, mapped over or differentiated.

    Numbers of Python and numpy, and arrays without dimensions, become weakly typed arrays, which take the
    dtype of the batch. So they all share compiled code.

    Raises:
        ValueError: naming the parameter, if it is not a real number or an array of them.
    """
    is_number = isinstance(value, int | np.integer | np.floating) and not isinstance(value, bool)
    given = value
    try:
        if is_number or _is_known_number(value):
            value = float(value)
        # Put explicitly, which a transfer guard of the user allows.
        known = isinstance(value, jax.Array) or is_traced(value)
        array = jnp.asarray(value) if known else jax.device_put(_without_dtype(value))
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or array.dtype.kind in "bc":
        raise ValueError(f"{name} must be a real number or an array of them, not {_one_line(given)}.")
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def _one_line(value: Any) -> str:
    """The value as Python writes it, or its dtype and shape if that takes more than a line."""
    text = repr(value)
    short = len(text) <= 100 and "\n" not in text
    return text if short or not hasattr(value, "dtype") else f"{value.dtype}{list(value.shape)}"


def _is_known_number(value: Any) -> bool:
    """Whether a value is an array of one real number without dimensions, and not traced."""
    if is_traced(value) or not isinstance(value, jax.Array | np.ndarray) or value.ndim:
        return False
    return bool(jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))


def _without_dtype(value: Any) -> Any:
    """What JAX may give its own dtype: a number of Python as it is, all else as an array of numpy."""
    return value if isinstance(value, bool | float | complex) else np.asarray(value)


def _checked(
    name: str, good: Callable[[np.ndarray], Any], what: str
) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf. It raises ValueError, naming the parameter, unless all numbers are good.

    What is traced has no values to look at.
    """

    def convert(value: Any) -> Inexact[Array, "..."]:
        array = as_parameter(value, name)
        if not is_traced(array):
            numbers = np.asarray(array)
            if not np.all(np.isfinite(numbers) & good(numbers)):
                raise ValueError(f"{name} must be {what}, not {numbers.tolist()}.")
        return array

    return convert


def positive(name: str, zero: bool = False) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf of positive values (with `zero` also 0). Other values raise ValueError
    with `name`."""
    if zero:
        return _checked(name, lambda v: v >= 0, "zero or positive")
    return _checked(name, lambda v: v > 0, "positive")


def finite(name: str) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf of finite values. Infinities and NaN raise ValueError with `name`."""
    return _checked(name, lambda v: np.isfinite(v), "finite")


def between(name: str, low: float, high: float) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf of values from `low` to `high`. Others raise ValueError with `name`."""
    return _checked(name, lambda v: (v >= low) & (v <= high), f"between {low} and {high}")


def fraction(name: str) -> Callable[[Any], Inexact[Array, "..."]]:
    """A converter to an array leaf of values between 0 and 1, both excluded. Others raise ValueError with
    `name`."""
    return _checked(name, lambda v: (v > 0) & (v < 1), "between 0 and 1, both excluded")


def number(name: str, zero: bool = False) -> Callable[[Any], Inexact[Array, "..."]]:
    """The same as `positive`, for a single number: an array of several raises ValueError with `name`."""
    check = positive(name, zero)

    def convert(value: Any) -> Inexact[Array, "..."]:
        array = check(value)
        # Mapped over, a parameter has axes that the model does not see.
        if array.ndim and not isinstance(value, jax.Array):
            raise ValueError(f"{name} must be one number, not an array of shape {list(array.shape)}.")
        return array

    return convert


def optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A converter that passes None through and applies `convert` to other values."""
    return lambda value: None if value is None else convert(value)


def one_of(name: str, choices: tuple[str, ...]) -> Callable[[Any], str]:
    """A converter for names. A name that is not among `choices` raises ValueError with `name` and the
    choices."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return value

    return convert


def positive_number(name: str) -> Callable[[Any], float]:
    """A converter to a static positive float. Other values raise ValueError with `name`."""
    check = positive(name)

    def convert(value: Any) -> float:
        # The number is known, also where a model is made inside a transform.
        with jax.ensure_compile_time_eval():
            number = np.asarray(check(value))
        if number.ndim:
            raise ValueError(f"{name} must be one number, not an array of shape {list(number.shape)}.")
        return float(value)

    return convert


LONGEST = 5.0e5
"""Largest length, Å. No cutoff is longer: unused slots of a neighbor list point to a place just beyond it."""


def positive_length(name: str, zero: bool = False) -> Callable[[Any], float]:
    """A converter to a static float, for lengths (Å) that determine shapes. Other values, and those longer
    than `LONGEST`, raise ValueError with `name`.

    Args:
        name: name of the parameter, for messages.
        zero: whether the length may be zero.
    """
    what = "zero or a positive length" if zero else "a positive length"

    def convert(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} must be {what} in Å, a number, not {value!r}.") from None
        if isinstance(value, bool | np.bool_) or not 0 <= number < np.inf or (number == 0 and not zero):
            raise ValueError(f"{name} must be {what} in Å, not {value!r}.")
        if number > LONGEST:
            raise ValueError(f"{name} must be at most {LONGEST:g} Å, not {number:g}.")
        return number

    return convert


def as_flag(name: str) -> Callable[[Any], bool]:
    """A converter to a static bool. Other values raise ValueError with `name`."""

    def convert(value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, not {value!r}.")
        return bool(value)

    return convert


def as_count(name: str) -> Callable[[Any], Any]:
    """A converter of positive ints to array leaves, so that another value does not recompile. Others raise
    ValueError."""

    def convert(value: Any) -> Any:
        if value is None or is_traced(value):
            return value
        known = isinstance(value, int | np.integer | jax.Array | np.ndarray)
        number = np.asarray(value if known else 0.5)
        if number.dtype.kind not in "iu" or number.ndim or not 0 < number < 2**31:
            raise ValueError(f"{name} must be a positive int, not {value!r}.")
        return jax.device_put(number.astype(np.int32))

    return convert


def as_seed(name: str) -> Callable[[Any], Any]:
    """A converter of ints from 0 to 2**32 - 1, seeds of random numbers, to array leaves. Others raise
    ValueError."""

    def convert(value: Any) -> Any:
        if is_traced(value):
            return value
        number = np.asarray(value)
        if number.dtype.kind not in "iu" or number.ndim or not 0 <= number < 2**32:
            raise ValueError(f"{name} must be an int from 0 to {2**32 - 1}, not {value!r}.")
        return jnp.asarray(number, jnp.uint32)

    return convert


def as_key(key: Any) -> Any:
    """A PRNG key: the given one, by default `jax.random.key(0)`.

    Raw key data, as `jax.random.PRNGKey` gives, become a key of the default generator with the same random
    numbers.

    Raises:
        ValueError: for any other value, such as a number or several keys.
    """
    if key is None:
        return jax.random.key(0)
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    raw = isinstance(key, jax.Array | np.ndarray) and dtype == np.uint32 and len(shape or ()) == 1
    if not (typed or raw):
        raise ValueError(f"key must be one PRNG key, such as jax.random.key(3), not {_one_line(key)}.")
    return jax.random.wrap_key_data(jnp.asarray(key)) if raw else key


def names(name: str) -> Callable[[Any], tuple[str, ...]]:
    """A converter to a tuple of names; a single name becomes a tuple of one. Others raise ValueError."""

    def convert(value: Any) -> tuple[str, ...]:
        found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
        if not found or not all(isinstance(entry, str) for entry in found):
            raise ValueError(f"{name} must be a name or a list of names, not {value!r}.")
        return found

    return convert


def function(name: str) -> Callable[[Any], Callable[..., Any]]:
    """A converter that accepts callables. Other values raise TypeError with `name`."""

    def convert(value: Any) -> Callable[..., Any]:
        if not callable(value):
            raise TypeError(f"{name} must be a function, not {value!r}.")
        return value

    return convert


def natural(name: str, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """A converter to a static positive int, for counts that determine shapes. Other values raise ValueError
    with `name`.

    Args:
        name: name of the parameter, for messages.
        most: largest value; arrays cannot have more rows than an int32 can count.
    """

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive int, not {value!r}.")
        if value > most:
            raise ValueError(f"{name} must be at most {most}, not {value}.")
        return int(value)

    return convert


def as_path(name: str) -> Callable[[Any], Path]:
    """A converter to a path. Other values than text and paths raise ValueError with `name`."""

    def convert(value: Any) -> Path:
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"{name} must be text or a pathlib.Path, not {value!r}.")
        return Path(text)

    return convert


def system_ids(name: str) -> Callable[[Any], list[int]]:
    """A converter to a list of `system_id`, ints from 0. Other values raise ValueError with `name`."""

    def convert(value: Any) -> list[int]:
        ids: list[Any] = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [None]
        if not all(isinstance(i, int | np.integer) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ValueError(f"{name} must be system_ids, whole numbers from 0, not {value!r}.")
        return [int(i) for i in ids]

    return convert


@jax.tree_util.register_static
class ExtraName(str):
    """The name of an extra of the batch, given in place of an array; static, not a leaf."""

    __slots__ = ()


class Described(eqx.Module):
    """A Module whose repr shows the values of its parameters."""

    def _shown(self) -> list[tuple[str, Any]]:
        """Names and values of what is shown."""
        return [(f.name, getattr(self, f.name, None)) for f in dataclasses.fields(self) if f.repr]

    def __repr__(self) -> str:
        parts = (f"{name}={_show(value)}" for name, value in self._shown())
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [(name, _show(value)) for name, value in self._shown()]
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


__all__ = [
    "LONGEST",
    "Described",
    "ExtraName",
    "Parameter",
    "as_count",
    "as_flag",
    "as_key",
    "as_parameter",
    "as_path",
    "as_seed",
    "between",
    "finite",
    "fraction",
    "function",
    "names",
    "natural",
    "number",
    "one_of",
    "optional",
    "positive",
    "positive_length",
    "positive_number",
    "system_ids",
]
