"""Pictures of structures in a notebook, by 3Dmol.js: `view()` of batches and trajectories."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from jaxtyping import Float


_STYLE = {"sphere": {"scale": 0.35, "colorscheme": "Jmol"}, "stick": {"radius": 0.1, "colorscheme": "Jmol"}}


def draw_structures(structures: Sequence[Atoms], width: int, height: int) -> Any:
    """A py3Dmol.view with a panel for each structure, in a nearly square grid; each turns by itself."""
    columns = int(np.ceil(np.sqrt(len(structures))))
    rows = -(-len(structures) // columns)
    view = _py3dmol().view(width=width, height=height, viewergrid=(rows, columns), linked=False)
    for k, atoms in enumerate(structures):
        panel = divmod(k, columns)
        view.addModel(_xyz([atoms]), "xyz", viewer=panel)
        _finish(view, atoms, (width / columns) / (height / rows), viewer=panel)
    return view


def draw_frames(frames: Sequence[Atoms], width: int, height: int, interval: int) -> Any:
    """A py3Dmol.view that plays the frames of one system in a loop, `interval` ms each.

    The cell is that of the first frame.
    """
    view = _py3dmol().view(width=width, height=height)
    view.addModelsAsFrames(_xyz(frames), "xyz")
    _finish(view, frames[0], width / height)
    view.animate({"loop": "forward", "interval": interval})
    return view


def _finish(view: Any, atoms: Atoms, aspect: float, **where: Any) -> None:
    view.setStyle(_STYLE, **where)
    for a, b in _edges(atoms):
        view.addLine({"start": _point(a), "end": _point(b), "color": "gray"}, **where)
    # Seen along an axis of a crystal, atoms hide the atoms behind them.
    view.rotate(-20, "y", **where)
    view.rotate(15, "x", **where)
    view.zoomTo(**where)
    # 3Dmol fits the height only.
    if aspect < 1:
        view.zoom(aspect, **where)


def _edges(atoms: Atoms) -> list[tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]]:
    """Begin and end of each edge of the cell; an empty list if there is no cell."""
    if atoms.cell.rank != 3:
        return []
    cell = atoms.cell.array
    corners = [np.array(c) for c in itertools.product((0, 1), repeat=3)]
    return [(a @ cell, (a + e) @ cell) for a in corners for e in np.eye(3, dtype=int) if not a @ e]


def _point(x: Float[np.ndarray, " 3"]) -> dict[str, float]:
    return dict(zip("xyz", map(float, x), strict=True))


def _xyz(structures: Sequence[Atoms]) -> str:
    from ase.io.xyz import write_xyz

    text = io.StringIO()
    write_xyz(text, structures, fmt="%.4f")
    return text.getvalue()


def _py3dmol() -> Any:
    try:
        import py3Dmol  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("view needs py3Dmol: pip install py3Dmol.") from None
    return py3Dmol


__all__ = ["draw_frames", "draw_structures"]
