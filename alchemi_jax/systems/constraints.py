"""Constraints of ASE as fixed Cartesian components of atoms, and back; what to do about the others."""

from typing import Any

import numpy as np
from ase.constraints import FixAtoms, FixCartesian, FixedLine, FixedPlane, FixScaled
from jaxtyping import Bool, Float


def fixed_by(
    constraint: Any, atoms: int, cell: Float[np.ndarray, "3 3"]
) -> Bool[np.ndarray, "atoms 3"] | None:
    """The components that a constraint fixes; None if it says something else.

    Args:
        atoms: number of atoms.
        cell: Å, for FixScaled.
    """
    if isinstance(constraint, FixAtoms):
        mask = np.ones(3, bool)
    elif isinstance(constraint, FixCartesian):
        mask = np.asarray(constraint.mask, bool)
    elif isinstance(constraint, FixScaled):
        mask = np.asarray(constraint.mask, bool)
        along_axes = not np.any(cell - np.diag(np.diag(cell)))
        if not (mask.all() or along_axes):
            return None
    elif isinstance(constraint, FixedPlane | FixedLine):
        along = np.asarray(constraint.dir) != 0
        if along.sum() != 1:
            return None
        mask = along if isinstance(constraint, FixedPlane) else ~along
    else:
        return None
    held = np.zeros((atoms, 3), bool)
    held[constraint.index] = mask
    return held


def to_constraints(
    fixed: Bool[np.ndarray, " atoms"], components: Bool[np.ndarray, "atoms 3"]
) -> list[FixAtoms | FixCartesian]:
    """FixAtoms for fixed atoms, and a FixCartesian for each set of fixed components."""
    held = components | fixed[:, None]
    whole = held.all(axis=1)
    out: list[FixAtoms | FixCartesian] = [FixAtoms(indices=np.flatnonzero(whole))] if whole.any() else []
    partial = held[~whole & held.any(axis=1)]
    for mask in np.unique(partial, axis=0) if len(partial) else ():
        out.append(FixCartesian(np.flatnonzero((held == mask[None]).all(axis=1)), tuple(mask.tolist())))
    return out


#: What to do in place of a constraint, by the name of its class.
_INSTEAD = {
    "FixSymmetry": (
        "a relaxation keeps the symmetry of its start up to rounding, so symmetrize the structure with "
        "ase.spacegroup.symmetrize.refine_symmetry before"
    ),
    "FixCom": "engines that conserve momentum keep the center of mass where it is, if it is at rest",
    "FixedPlane": "turn the structure so that the normal of the plane is along an axis",
    "FixedLine": "turn the structure so that the line is along an axis",
    "FixScaled": "fix all three components, or use a cell along the axes",
}
_BOND = "hold it by a stiff spring, with BiasedPotentialHook, or fix its atoms"
for _name in ("FixBondLength", "FixBondLengths", "FixLinearTriatomic", "FixInternals", "Hookean"):
    _INSTEAD[_name] = _BOND


DROP = "Batch.from_ase(..., constraints='drop')"


def refusal(name: str, constraints: tuple, drop: str = DROP) -> str:
    """Why a system with these constraints is refused, in a sentence.

    Args:
        name: of the system.
        constraints: those that cannot be applied.
        drop: what the user writes to leave them out.
    """
    kinds = list(dict.fromkeys(type(c).__name__ for c in constraints))
    advice = "; ".join(f"for {kind}: {_INSTEAD[kind]}" for kind in kinds if kind in _INSTEAD)
    return (
        f"{name} has the constraint {' and '.join(kinds)}, which no engine applies: FixAtoms and "
        f"FixCartesian do. {'Instead, ' + advice + '. ' if advice else ''}"
        f"{drop} leaves it out."
    )


__all__ = ["DROP", "fixed_by", "refusal", "to_constraints"]
