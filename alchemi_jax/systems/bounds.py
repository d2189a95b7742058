"""How far from the origin atoms may be, so that rounding does not change their distances."""

from typing import Any

import numpy as np
from jaxtyping import Float


#: Å. What rounding of a position may come to when a run begins.
_ROUNDING = 1e-3


def furthest_start(dtype: Any) -> float:
    """The largest coordinate that a structure may have when a batch is made of it, Å.

    Beyond it numbers of this dtype are more than a thousandth of an Å apart: 8,192 Å in single precision.
    """
    return float(2.0 ** np.floor(np.log2(_ROUNDING / float(np.finfo(dtype).eps))))


def furthest(dtype: Any) -> float:
    """The largest coordinate that an atom may have during a run, Å; beyond it the system fails.

    Sixteen times that of the start: there a step of a hundredth of an Å is rounded away.
    """
    return 16 * furthest_start(dtype)


def check_positions(name: str, positions: Float[np.ndarray, "atoms 3"], dtype: Any) -> None:
    """Check that positions keep their distances in a dtype.

    Args:
        name: of the system.

    Raises:
        ValueError: naming the system and the atom.
    """
    far = np.abs(positions).max(axis=1, initial=0)
    most = furthest_start(dtype)
    if (far > most).any():
        atom = int(np.argmax(far))
        raise ValueError(
            f"{name}: positions of atom {atom} are {far[atom]:.6g} Å from the origin; in {np.dtype(dtype)} "
            f"numbers beyond {most:.4g} Å are more than 0.001 Å apart, so distances would change. Move the "
            "structure near the origin (atoms.positions -= atoms.positions.mean(0), or atoms.wrap())"
            + (", or use dtype='float64'." if np.dtype(dtype).itemsize < 8 else ".")
        )


__all__ = ["check_positions", "furthest", "furthest_start"]
