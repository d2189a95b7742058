"""Pictures of a training: loss and errors against the step, and results against labels."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alchemi_jax.cli.plot import save_figure
from alchemi_jax.cli.train_report import Points, number, unit_of


#: So many points of one kind are drawn at most.
_DRAWN = 20000
#: Rows of the log over which the line is a median: this part of them.
_SMOOTHED = 100


def read_log(path: Path) -> dict[str, np.ndarray] | None:
    """The columns of a log; None if it has no rows."""
    if not path.exists():
        return None
    table = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True, ndmin=1))
    names = table.dtype.names or ()
    return {name: table[name] for name in names} if len(table) else None


def loss_picture(picture: Path, title: str, log: Any, validations: Any, best: int | None) -> None:
    """The loss against the step, and the errors on validation below it.

    Args:
        picture: the file to write.
        log, validations: columns, as `read_log` gives them.
        best: step of the model that is kept, drawn as a line; None for the last.
    """
    found = [] if validations is None else [name for name in validations if name.endswith("_mae")]
    figure = Figure(figsize=(7, 3.8 + 2.6 * bool(found)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1 + bool(found), 1, sharex=True, squeeze=False)[:, 0]
    upper = panels[0]
    if log is not None:
        # The loss of a row is of the parameters before its step.
        x, y = log["step"], log["loss"]
        many = len(x) > _SMOOTHED
        upper.plot(x, y, ".", ms=2, color="C0", alpha=0.25 if many else 1, label="batches")
        if many:
            upper.plot(*_medians(x, y), color="C0", lw=1.4, label="batches, median")
    if validations is not None:
        marker = "o" if len(validations["step"]) < 30 else None
        upper.plot(
            validations["step"],
            validations["loss"],
            color="C1",
            lw=1.4,
            marker=marker,
            ms=3,
            label="validation",
        )
    upper.set(ylabel="loss")
    upper.set_title("\n".join(textwrap.wrap(title, 80)), fontsize=10)
    upper.set_yscale("log")
    if log is not None or validations is not None:
        upper.legend(frameon=False, fontsize=9)
    if found:
        _errors(panels[1], validations or {}, [name.removesuffix("_mae") for name in found])
    for axes in panels:
        if best is not None:
            axes.axvline(best, color="black", ls=":", lw=1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    panels[-1].set_xlabel("step" if best is None else f"step; dotted: the model that is kept, step {best}")
    save_figure(figure, picture)


def _errors(axes: Any, validations: dict[str, np.ndarray], names: list[str]) -> None:
    marker = "o" if len(validations["step"]) < 30 else None
    for k, name in enumerate(names):
        unit, factor = unit_of(name)
        values = factor * validations[f"{name}_mae"]
        if np.isfinite(values).any():
            label = f"{name} ({unit})" if unit else name
            axes.plot(
                validations["step"], values, color=f"C{k + 2}", lw=1.4, marker=marker, ms=3, label=label
            )
    axes.set(ylabel="MAE on validation")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9)


def _medians(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians of x and y over stretches of equally many rows."""
    parts = np.array_split(np.arange(len(x)), _SMOOTHED)
    return np.array([x[p].mean() for p in parts]), np.array([np.median(y[p]) for p in parts])


def parity_picture(picture: Path, title: str, points: Points, errors: dict[str, dict[str, float]]) -> None:
    """Results of the model against labels, a panel for energy, forces and what else there is.

    Args:
        picture: the file to write.
        title: which data these are.
        errors, points: as `compare` gives them.
    """
    names = list(points)
    figure = Figure(figsize=(3.9 * max(len(names), 1), 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=False):
        predicted, label = points[name]
        drawn = np.linspace(0, len(label) - 1, min(len(label), _DRAWN)).astype(int)
        ends = [min(label.min(), predicted.min()), max(label.max(), predicted.max())]
        axes.plot(ends, ends, color="black", lw=0.8)
        alpha = float(np.clip(2000 / len(drawn), 0.15, 0.8))
        axes.plot(label[drawn], predicted[drawn], ".", ms=3, alpha=alpha, color="C0", rasterized=True)
        unit, factor = unit_of(name)
        shown = {"energy": "energy (eV/atom)", "forces": "forces (eV/Å)", "stress": "stress (eV/Å³)"}
        text = shown.get(name, f"{name} ({unit})" if unit else name)
        axes.set(xlabel=f"label: {text}", ylabel=f"model: {text}")
        axes.set_title(f"{name}: MAE {number(factor * errors[name]['mae'])} {unit}".rstrip(), fontsize=10)
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, picture)
