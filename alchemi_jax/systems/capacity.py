"""Sizes and dtype of padded arrays: a few sizes an octave, so that similar batches share compiled code."""

from typing import Any

import jax
import numpy as np


def round_up(n: int, per_octave: int = 8, least: int = 1) -> int:
    """The smallest size >= n of a grid with `per_octave` sizes between a power of two and the next.

    At most 1/per_octave of the array is padding: 3,328 stays 3,328, 3,329 becomes 3,584.
    """
    n = max(int(n), least)
    step = max(1, (1 << (n.bit_length() - 1)) // per_octave)
    return -(-n // step) * step


def float_dtype(dtype: Any) -> np.dtype:
    """The run's dtype; float64 that JAX would silently narrow is an error."""
    wanted = np.dtype(dtype if dtype is not None else jax.dtypes.canonicalize_dtype(float))
    if wanted.kind != "f":
        raise ValueError(f"dtype must be a float type, not {wanted}.")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"dtype {wanted} needs 64-bit JAX: call jax.config.update('jax_enable_x64', True) "
            "before the first array is made, or set JAX_ENABLE_X64=1."
        )
    return wanted


def capacity(what: str, given: int | None, needed: int, per_octave: int, least: int) -> int:
    """A given capacity, if it holds what is needed, or the next of the grid of sizes."""
    if given is None:
        return round_up(needed, per_octave, least)
    if given < needed:
        raise ValueError(f"{what}_capacity is {given}, but there are {needed} {what}s.")
    return int(given)
