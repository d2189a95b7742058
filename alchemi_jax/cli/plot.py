"""Pictures of a relaxation and of a trajectory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alchemi_jax.cli.folder import SOFTWARE
from alchemi_jax.io.parts import part_paths


def read_rows(path: Path) -> np.ndarray:
    """The rows of a log, by column; those of several processes one after another."""
    parts = [np.genfromtxt(part, delimiter=",", names=True, ndmin=1) for part in part_paths(path)]
    # A process without structures has written no rows.
    filled = [part for part in parts if part.size] or parts[:1]
    return np.concatenate(filled) if len(filled) > 1 else filled[0]


def convergence(log: Path, picture: Path, fmax: float, atoms: np.ndarray) -> None:
    """fmax and energy of every system against the step, from the log.

    Args:
        log: as `LoggingHook` writes it.
        picture: the file to write.
        fmax: the threshold, eV/Å, drawn as a line.
        atoms: [systems], number of atoms: energies are drawn per atom, above each system's last.
    """
    table = read_rows(log)
    # Logs of earlier versions have only the step of the run.
    x = "steps_taken" if "steps_taken" in (table.dtype.names or ()) else "step"
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    forces, energies = figure.subplots(2, 1, sharex=True)
    systems = np.unique(table["system_id"]).astype(int)
    alpha = float(np.clip(8 / max(len(systems), 1), 0.15, 0.8))
    lowest = highest = 0.0
    for system in systems:
        rows = table[table["system_id"] == system]
        # A line of one point draws nothing.
        marker = "o" if len(rows) == 1 else None
        style = {"lw": 0.9, "alpha": alpha, "color": f"C{system % 10}", "marker": marker, "ms": 4}
        forces.plot(rows[x], np.maximum(rows["fmax"], 1e-12), **style)
        above = 1000 * (rows["energy"] - rows["energy"][-1]) / atoms[system]
        energies.plot(rows[x], above, **style)
        lowest, highest = min(lowest, float(above.min())), max(highest, float(above.max()))
    steps = np.unique(table[x])
    if len(steps):
        order = np.argsort(table[x], kind="stable")
        first = np.searchsorted(table[x][order], steps)
        worst = np.maximum.reduceat(table["fmax"][order], first)
        forces.plot(
            steps,
            np.maximum(worst, 1e-12),
            color="black",
            lw=1.4,
            label="worst of those left",
            marker="o" if len(steps) == 1 else None,
            ms=3,
        )
    forces.axhline(fmax, color="black", ls=":", lw=1.2, label=f"threshold {fmax:g} eV/Å")
    forces.set(yscale="log", ylabel="fmax (eV/Å)", title=f"Relaxation of {len(systems)} structures")
    forces.legend(frameon=False, fontsize=9)
    energies.set(xlabel="step", ylabel="energy above the last (meV/atom)")
    energies.set_yscale("symlog", linthresh=0.1)
    # Points at zero are not on the edge.
    energies.set_ylim(bottom=1.1 * lowest if lowest or highest else -0.05)
    for axes in (forces, energies):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    save_figure(figure, picture)


#: So many systems are drawn, evenly chosen from all.
_DRAWN = 200


def quantities(
    picture: Path,
    title: str,
    x: np.ndarray,
    values: list[tuple[str, str, np.ndarray]],
    systems: list[np.ndarray],
    *,
    label: str = "step",
    names: list[str] | None = None,
    set_values: Mapping[str, float] | None = None,
) -> None:
    """Quantities of every system against the step or the time, one above the other.

    Args:
        picture: the file to write.
        x: [rows] steps that the system had taken, or its time.
        values: name, unit and [rows] values of each quantity.
        systems: the rows of each system, in order.
        label: of x.
        names: of the systems, for the legend.
        set_values: name of a quantity -> the value that the run was to have, drawn as a line.
    """
    figure = Figure(figsize=(7, 1.4 + 1.9 * len(values)), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = np.unique(np.linspace(0, len(systems) - 1, min(len(systems), _DRAWN)).astype(int))
    alpha = float(np.clip(8 / len(drawn), 0.15, 0.9))
    panels = figure.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, unit, of_rows) in zip(panels, values, strict=True):
        for k in drawn:
            rows = systems[k]
            marker = "o" if len(rows) == 1 else None
            style = {"lw": 0.9, "alpha": alpha, "color": f"C{k % 10}", "marker": marker, "ms": 3}
            axes.plot(x[rows], of_rows[rows], **style)
        if set_values and name in set_values:
            line = axes.axhline(set_values[name], color="black", ls=":", lw=1.2)
            axes.legend([line], [f"set: {set_values[name]:g} {unit}"], frameon=False, fontsize=8)
        if name == "fmax" and (of_rows[np.isfinite(of_rows)] > 0).any():
            axes.set_yscale("log")
        axes.set_ylabel(f"{name}\n({unit})")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    panels[0].set_title(title if len(drawn) == len(systems) else f"{title}, {len(drawn)} systems drawn")
    panels[-1].set_xlabel(label)
    _legend(figure, panels[0], drawn, names)
    save_figure(figure, picture)


def _legend(figure: Figure, axes: Any, drawn: np.ndarray, names: list[str] | None) -> None:
    """Which colour is which system, or how many there are if there are more than colours."""
    if names is None:
        return
    if len(drawn) <= 10:
        lines, texts = axes.lines[: len(drawn)], [names[k] for k in drawn]
    else:
        lines, texts = axes.lines[:1], [f"each line is one of {len(names)} systems"]
    options = {"loc": "outside lower center", "ncols": 5, "frameon": False, "fontsize": 8}
    legend = figure.legend(lines, texts, **options)
    for line in legend.get_lines():
        line.set_alpha(1)


def save_figure(figure: Figure, picture: Path) -> None:
    """The file, with a mark by which it is known as ours."""
    key = "Software" if picture.suffix.lower() == ".png" else "Creator"
    known = picture.suffix.lower() in (".png", ".pdf", ".svg")
    figure.savefig(picture, dpi=130, metadata={key: SOFTWARE} if known else None)
