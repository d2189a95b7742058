"""Errors of a trained model on both sets of data: as numbers, as a table, and as points of a picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from alchemi_jax.cli.outcome import UsageError, os_reason
from alchemi_jax.cli.train_plan import TrainPlan
from alchemi_jax.cli.write import whole_file
from alchemi_jax.models.base import AbstractModel, results_of
from alchemi_jax.systems.batch import Batch
from alchemi_jax.training.losses import label_errors


REPORT = "report.json"
#: What `results` and labels are called, their unit as it is shown, and its part of theirs.
_SHOWN = {
    "energy": ("meV/atom", 1000.0),
    "forces": ("meV/Å", 1000.0),
    "stress": ("meV/Å³", 1000.0),
    "magmoms": ("μB", 1.0),
}
#: name -> predicted and label, one number each, with the same unit.
Points = dict[str, tuple[np.ndarray, np.ndarray]]


def compare(
    model: AbstractModel, data: Any, names: tuple[str, ...], keep: bool
) -> tuple[dict[str, dict[str, float]], Points]:
    """Errors of a model on data, and what it gives with the labels, of results that have labels.

    Args:
        data: Batches or a Mixture, fitted to the model.
        names: of results.
        keep: whether to keep the single results; energies are per atom.

    Returns:
        By name the mean absolute error, the root mean square error and the number of labels, nothing without
        labels; and the results, empty if they are not kept.
    """

    sums = {name: np.zeros(3) for name in names}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in names}
    for item in data.in_order():
        for name, (error, there, label) in jax.device_get(_of_batch(model, item, names)).items():
            mask = np.asarray(there, bool)
            e = np.asarray(error, np.float64)[mask]
            sums[name] += np.abs(e).sum(), (e * e).sum(), len(e)
            if keep and len(e):
                labels = np.asarray(label, np.float64)[mask]
                found[name].append((labels + e, labels))
    errors = {
        name: {"mae": float(a / n), "rmse": float(np.sqrt(s / n)), "labels": int(n)}
        for name, (a, s, n) in sums.items()
        if n
    }
    points = {
        name: (np.concatenate([p for p, _ in parts]), np.concatenate([x for _, x in parts]))
        for name, parts in found.items()
        if parts
    }
    return errors, points


@eqx.filter_jit
def _of_batch(model: AbstractModel, item: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Error, whether there is a label, and label, by name."""
    batch, neighbors = item.unpack()
    results = results_of(model, batch, neighbors, stress="stress" in names)
    return {name: (*label_errors(name, results, batch), _label(batch, name)) for name in names}


def _label(batch: Batch, name: str) -> Any:
    label = batch[name]
    return label / batch.atoms_per_system.clip(1).astype(label.dtype) if name == "energy" else label


def named_results(plan: TrainPlan) -> tuple[str, ...]:
    """The results that are reported: those of the loss, and energy, forces and stress if they have labels."""
    structures = [s for part in (*plan.sets.train, plan.sets.validation or ()) for _, s in part]
    own = [
        name
        for name in ("energy", "forces", "stress")
        if name in plan.loss.names or any(np.isfinite(getattr(s, name)).any() for s in structures)
    ]
    return (*own, *(name for name in plan.loss.names if name not in own))


def write_report(at: Path, content: Mapping[str, Any]) -> None:
    """Write the file into a folder."""
    with whole_file(at / REPORT) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def read_report(at: Path) -> dict[str, Any] | None:
    """What was written; None if there is none.

    Raises:
        UsageError: if it cannot be read.
    """
    try:
        content = json.loads((at / REPORT).read_text())
        if not isinstance(content, dict) or not isinstance(content["train"], dict):
            raise ValueError
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, RecursionError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else "it holds no report"
        raise UsageError(f"{at / REPORT} cannot be read: {reason}.") from None


def table(report: Mapping[str, Any]) -> list[str]:
    """The errors as lines of text: a row for each result, mean absolute and root mean square of both sets."""
    sets = [name for name in ("train", "validation") if report.get(name)]
    names = list(dict.fromkeys(name for which in sets for name in report[which]))
    if not names:
        return []
    lines = [f"  {'errors':20}" + "".join(f"{which:>24}" for which in sets)]
    lines.append(f"  {'':20}" + "".join(f"{'MAE':>12}{'RMSE':>12}" for _ in sets))
    for name in names:
        unit, factor = _SHOWN.get(name, ("", 1.0))
        cells = ""
        for which in sets:
            found = report[which].get(name)
            pair = ("", "") if found is None else (number(factor * found[key]) for key in ("mae", "rmse"))
            cells += "".join(f"{text:>12}" for text in pair)
        lines.append(f"  {f'{name}, {unit}' if unit else name:20}{cells}")
    others = [name for name in names if name not in report.get("loss", names)]
    if others:
        lines.append(
            f"  not trained: {', '.join(others)} {'have' if len(others) > 1 else 'has'} no weight in loss"
        )
    return lines


def number(value: float) -> str:
    """Three digits, without an exponent where it is short."""
    return f"{value:.3g}" if value < 1e3 or value >= 1e6 else f"{value:.0f}"


def unit_of(name: str) -> tuple[str, float]:
    """The unit in which errors of a result are shown, and how many of it are one of eV and Å."""
    return _SHOWN.get(name, ("", 1.0))
