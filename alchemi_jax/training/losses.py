"""Losses: how far results are from their labels; labels that are missing, and padding, do not count."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alchemi_jax.errors import description, name_of
from alchemi_jax.models.base import AbstractModel, Results
from alchemi_jax.parameters import Described, positive
from alchemi_jax.spelling import did_you_mean
from alchemi_jax.systems.batch import Batch


_KINDS = ("mse", "mae", "huber")
#: Results that every model has.
_OWN = ("energy", "forces", "stress")
#: A weight: a number, or a schedule of the step as those of optax.
Weight = Float[Array, ""] | Callable[[Any], Any]


class Loss(Described):
    """The weighted sum of the errors of several results, each a mean over the labels in a batch.

        loss = Loss(energy=1.0, forces=10.0, kind="huber", delta=0.01)
        loss = Loss(energy=optax.linear_schedule(0.1, 10.0, 5000), forces=1.0, stress=100.0)
        loss = Loss(energy=1.0, magmoms=0.1, kind={"energy": "mse", "magmoms": "mae"})

    Errors are those of the energy per atom (eV), of each component of forces (eV/Å) and stress (eV/Å³), and
    of other results of the model by their names. A label that is NaN is missing. Missing labels and padding
    change neither the loss nor its gradient. Without any label of a kind its part is zero. Stress counts only
    for systems that are periodic in all directions.

    Args:
        energy, forces, stress: weights; None leaves the result out. A number is a leaf, so another value does
            not recompile. A function of the step, such as a schedule of optax, gives the weight in each step.
        kind: "mse", e²; "mae", |e|; "huber", e²/2 up to `delta` and delta (|e| - delta/2) beyond; one for
            all, or by name.
        delta: error at which Huber's loss becomes linear, in the unit of the error; one for all, or by name.
        others: weights of further results, by the names in `extra_results` of the model.

    Raises:
        ValueError: without weights, for a weight that is negative or not finite, or for an unknown kind.

    Source: for "huber", P. J. Huber, Ann. Math. Stat. 35, 73 (1964), doi:10.1214/aoms/1177703732.
    """

    weights: dict[str, Weight]
    delta: dict[str, Float[Array, ""]]
    kind: tuple[tuple[str, str], ...] = eqx.field(static=True)

    def __init__(
        self,
        energy: Any = None,
        forces: Any = None,
        stress: Any = None,
        *,
        kind: Any = "huber",
        delta: float | Mapping[str, float] = 0.01,
        **others: Any,
    ):
        given = {"energy": energy, "forces": forces, "stress": stress, **others}
        given = {name: weight for name, weight in given.items() if weight is not None}
        if not given:
            raise ValueError("Loss needs a weight: Loss(energy=1.0, forces=10.0), for example.")
        self.weights = {
            name: weight if callable(weight) else positive(f"weight of {name}", zero=True)(weight)
            for name, weight in given.items()
        }
        kinds = _by_name("kind", kind, given, "huber")
        for value in kinds.values():
            if value not in _KINDS:
                raise ValueError(f"kind must be one of {', '.join(_KINDS)}, not {value!r}.")
        self.kind = tuple(kinds.items())
        self.delta = {
            name: positive(f"delta of {name}")(value)
            for name, value in _by_name("delta", delta, given, 0.01).items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The results in the loss, whose labels are needed."""
        return tuple(self.weights)

    @property
    def needs_stress(self) -> bool:
        """Whether the model must evaluate the stress."""
        return "stress" in self.weights

    def check(self, model: AbstractModel) -> None:
        """Check that a model has all results in the loss.

        Raises:
            ValueError: naming the first one that it does not have.
        """
        known = (*_OWN, *model.extra_results)
        for name in self.names:
            if name not in known:
                raise ValueError(
                    f"the loss has a weight for {name!r}, but {name_of(model)} gives only {', '.join(known)}"
                    f"{did_you_mean(name, known) or '.'}"
                )

    def __call__(
        self, results: Results, batch: Batch, step: Int[Array, ""] | int = 0
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of a batch, and its parts by name, without their weights.

        Args:
            results: of the model.
            batch: with labels in its fields and extras.
            step: number of completed steps, for weights that are schedules.

        Raises:
            ValueError: while tracing, naming a result without labels or labels of another shape.
        """
        kinds, losses = dict(self.kind), {}
        for name in self.names:
            error, there = label_errors(name, results, batch)
            terms = _terms(kinds[name], error, self.delta[name].astype(error.dtype))
            losses[name] = terms.sum() / jnp.maximum(there.sum(), 1)
        total = jnp.zeros((), next(iter(losses.values())).dtype)
        for name, value in losses.items():
            weight = self.weights[name]
            weight = weight(step) if callable(weight) else weight
            total = total + jnp.asarray(weight).astype(value.dtype) * value
        return total, losses


def _by_name(what: str, given: Any, names: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """One value for each name, from a value for all or a mapping."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, given)
    for name in given:
        if name not in names:
            raise ValueError(f"{what} names {name!r}, which has no weight{did_you_mean(name, names) or '.'}")
    return {name: given.get(name, default) for name in names}


def _terms(kind: str, error: Float[Array, "*n"], delta: Float[Array, ""]) -> Float[Array, "*n"]:
    if kind == "mse":
        return error * error
    size = jnp.abs(error)
    if kind == "mae":
        return size
    # e²/2 up to delta, linear beyond.
    inner = jnp.minimum(size, delta)
    return inner * (size - inner / 2)


def label_errors(
    name: str, results: Results, batch: Batch
) -> tuple[Float[Array, "rows *dims"], Bool[Array, "rows *dims"]]:
    """Result minus label, zero where there is no label, and where there is one; the energy per atom.

    Raises:
        ValueError: naming a result without labels in the batch, or with labels of another shape.
    """
    found: Any = getattr(results, name) if name in _OWN else results.extras.get(name)
    if found is None:
        why = "the stress was not asked for" if name == "stress" else f"it gives {sorted(results.extras)}"
        raise ValueError(f"the loss has a weight for {name!r}, but the model did not give it: {why}.")
    known = batch.keys()
    if name not in known:
        raise ValueError(
            f"the loss has a weight for {name!r}, but the batch has no such labels: put them into "
            f"atoms.arrays or atoms.info under this name{did_you_mean(name, known) or '.'}"
        )
    label = batch[name]
    if jnp.shape(found) != label.shape:
        raise ValueError(
            f"labels of {name} are {description(label)} in the batch, but the model gives "
            f"{description(found)}: one of them has the wrong shape."
        )
    level = batch.level(name)
    rows = batch.atom_mask if level == "atom" else batch.system_mask
    if name == "stress":
        # Stress is defined in a cell; elsewhere it is NaN.
        rows = rows & batch.pbc.all(axis=1)
    there = jnp.isfinite(label) & rows.reshape(rows.shape + (1,) * (label.ndim - 1))
    # Masked before and after the subtraction, so that no NaN reaches a gradient.
    error = jnp.where(there, found, 0) - jnp.where(there, label, 0).astype(found.dtype)
    if name == "energy":
        error = error / jnp.maximum(batch.atoms_per_system, 1).astype(error.dtype)
    return error, there


class Errors(eqx.Module):
    """Errors of one result, as sums over the labels of one or several batches; `a + b` adds them.

    Attributes:
        absolute, squared: sums of |e| and e², with e in the unit of the label (energy: eV per atom).
        count: number of labels.
    """

    absolute: Float[Array, ""]
    squared: Float[Array, ""]
    count: Int[Array, ""]

    def __add__(self, other: "Errors") -> "Errors":
        return jax.tree.map(lambda a, b: a + b, self, other)

    @property
    def mae(self) -> Float[Array, ""]:
        """Mean absolute error; NaN without labels."""
        return self.absolute / self.count

    @property
    def rmse(self) -> Float[Array, ""]:
        """Root mean square error; NaN without labels."""
        return jnp.sqrt(self.squared / self.count)


def errors(
    results: Results, batch: Batch, names: tuple[str, ...] = ("energy", "forces")
) -> dict[str, Errors]:
    """Errors of the results of a batch, by name: sums over its labels, which can be added over batches.

    Each has `mae` and `rmse`, in eV per atom for the energy, eV/Å for forces and eV/Å³ for the stress.

    Args:
        results: those of the model.
        batch: has the labels, NaN if missing.
        names: names of the results.
    """
    out = {}
    for name in names:
        error, there = label_errors(name, results, batch)
        out[name] = Errors(jnp.abs(error).sum(), (error * error).sum(), there.sum().astype(jnp.int32))
    return out


__all__ = ["Errors", "Loss", "errors", "label_errors"]
