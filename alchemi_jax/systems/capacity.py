"""Sizes and dtype of padded arrays: a few sizes per octave, so that similar batches share compiled code."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int


def round_up(n: int, per_octave: int = 8, least: int = 1) -> int:
    """The smallest size >= n of a grid with `per_octave` sizes between a power of two and the next.

    At most 1/per_octave of the array is padding: 3,328 stays 3,328, 3,329 becomes 3,584.
    """
    n = max(int(n), least)
    step = max(1, (1 << (n.bit_length() - 1)) // per_octave)
    return -(-n // step) * step


def sizes_per_octave(atoms: int) -> int:
    """Number of sizes between a power of two and the next, for arrays of a batch with this many atoms.

    In a small batch padding costs almost nothing, but compiling takes seconds: up to 128 atoms sizes are
    powers of two. From 2,048 atoms on at most an eighth is padding.
    """
    return 1 if atoms <= 128 else 2 if atoms <= 512 else 4 if atoms < 2048 else 8


def widths_per_octave(atoms: int) -> int:
    """As `sizes_per_octave`, for `largest` and widths of neighbor lists: powers of two up to 512 atoms."""
    return 1 if atoms <= 512 else sizes_per_octave(atoms)


class Capacities(NamedTuple):
    """Lengths of the padded arrays of a batch: places for atoms, for systems, for the atoms of one system."""

    atoms: int
    systems: int
    largest: int


def batch_capacities(
    counts: Int[np.ndarray, " systems"],
    atoms: int | None = None,
    systems: int | None = None,
    largest: int | None = None,
) -> Capacities:
    """Capacities for a batch; those that are not given are rounded up to one of a few sizes.

    Args:
        counts: number of atoms of each system.

    Raises:
        ValueError: for a capacity that is too small.
    """
    n, most = int(counts.sum()), int(counts.max(initial=1))
    return Capacities(
        _capacity("atom_capacity", atoms, n, "atoms", sizes_per_octave(n), 16),
        _capacity("system_capacity", systems, len(counts), "systems", 4, 1),
        _capacity("largest", largest, most, "atoms in one system", widths_per_octave(n), 1),
    )


def _capacity(name: str, given: int | None, needed: int, what: str, per_octave: int, least: int) -> int:
    if given is None:
        return round_up(needed, per_octave, least)
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise ValueError(f"{name} must be a positive int, not {given!r}.")
    if given < needed:
        raise ValueError(f"{name} is {given}, but there are {needed} {what}.")
    if given >= 2**31:
        raise ValueError(f"{name} is {given}, which is more than arrays can be indexed by.")
    return int(given)


def check_precision(who: str, dtype: np.dtype) -> None:
    """Check that JAX still has the 64 bits with which arrays were made.

    Raises:
        ValueError: naming `jax_enable_x64`.
    """
    if dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore
        raise ValueError(
            f"{who} was given float64 arrays, but jax_enable_x64 is off here: call it inside of `with "
            "jax.enable_x64(True)` too, set jax_enable_x64 for the whole program, or make the batch again "
            'with dtype="float32".'
        )


def float_dtype(dtype: Any) -> np.dtype:
    """The dtype of a run; float64 that JAX would silently make float32 is an error."""
    try:
        wanted = np.dtype(dtype if dtype is not None else jax.dtypes.canonicalize_dtype(float))
    except TypeError:
        raise ValueError(f"dtype must be a float type, float32 or float64, not {dtype!r}.") from None
    if wanted.kind != "f":
        raise ValueError(f"dtype must be a float type, not {wanted}.")
    if wanted not in (np.float32, np.float64):
        # Half precision overflows in the powers of distances that potentials take.
        raise ValueError(f"dtype must be float32 or float64, not {wanted}.")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError(
            f"dtype {wanted} needs 64-bit JAX: call jax.config.update('jax_enable_x64', True) "
            "before the first array is made, or set JAX_ENABLE_X64=1."
        )
    return wanted


__all__ = [
    "Capacities",
    "batch_capacities",
    "check_precision",
    "float_dtype",
    "round_up",
    "sizes_per_octave",
    "widths_per_octave",
]
