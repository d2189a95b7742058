"""ConvergenceHook: decides which systems have converged, and advances their status."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.parameters import Described, Parameter, as_flag, positive
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import PerSystem
from alchemi_jax.systems.observables import fmax, volume
from alchemi_jax.systems.segments import any_by_system
from alchemi_jax.transforms import root


FMAX = 0.05
"""eV/Å. The default criterion."""

SMAX = 6e-4
"""eV/Å³, 0.1 GPa. What a criterion on forces brings with it, where a cell is relaxed."""

_REDUCTIONS: dict[str, Callable[..., Shaped[Array, "..."]]] = {
    "norm": lambda x, axis: jnp.sqrt(jnp.sum(x * x, axis=axis)),
    "max": lambda x, axis: jnp.max(x, axis=axis),
    "min": lambda x, axis: jnp.min(x, axis=axis),
    "mean": lambda x, axis: jnp.mean(x, axis=axis),
    "sum": lambda x, axis: jnp.sum(x, axis=axis),
}


class Criterion(Described):
    """One condition that a system must meet.

    Args:
        key: a field or extra of the batch; or "fmax", the largest force norm, eV/Å; or "smax", the largest
            component of the stress that the algorithm relaxes, eV/Å³ (that of the batch plus an external
            pressure, without components that a mask excludes); or "energy_change", |E - E at the last check|,
            eV, infinite at the first check.
        threshold: a value at or below it counts as converged.
        reduce_op: how the axes of one entry are reduced: norm, max, min, mean, sum. Without it the largest
            absolute value counts.
        reduce_dims: the axes to reduce, numbered as in the whole array, by default the last. Of the remaining
            axes the largest value counts. Axis 0, that of atoms or systems, cannot be reduced.
        custom_op: a function of the array that gives a mask, per atom or per system like the array. It
            replaces reduction and threshold.
    """

    key: str = eqx.field(static=True, default="fmax")
    threshold: Parameter = eqx.field(converter=positive("threshold", zero=True), default=FMAX)
    reduce_op: str | None = eqx.field(static=True, default=None)
    reduce_dims: int | tuple[int, ...] = eqx.field(
        static=True, default=-1, converter=lambda d: tuple(d) if isinstance(d, list) else d
    )
    custom_op: Callable[[Shaped[Array, "..."]], Bool[Array, "..."]] | None = eqx.field(
        static=True, default=None
    )

    def __check_init__(self):
        if not isinstance(self.key, str):
            raise TypeError(f"key of a criterion must be the name of a field, not {self.key!r}.")
        if self.threshold.ndim > 1:
            raise ValueError(
                f"threshold of the criterion on {self.key!r} must be a number or one per system, not an "
                f"array of shape {list(self.threshold.shape)}."
            )
        if self.custom_op is not None and not callable(self.custom_op):
            raise TypeError(f"custom_op of the criterion on {self.key!r} must be a function.")
        if not _is_axes(self.reduce_dims):
            raise TypeError(
                f"reduce_dims of the criterion on {self.key!r} must be ints, not {self.reduce_dims!r}."
            )
        if self.reduce_op is not None and self.reduce_op not in _REDUCTIONS:
            raise ValueError(f"reduce_op must be one of {', '.join(_REDUCTIONS)}, not {self.reduce_op!r}.")

    def converged(
        self,
        batch: Batch,
        previous_energy: Float[Array, " systems"] | None,
        stress: Float[Array, "systems 3 3"] | None = None,
    ) -> Bool[Array, " systems"]:
        """True for systems that meet the criterion, [systems]."""
        if self.key == "energy_change":
            assert previous_energy is not None
            values, level = jnp.abs(batch.energy - previous_energy), "system"
        elif self.key == "smax" and stress is not None:
            values, level = stress, "system"
        elif self.key == "fmax" and "fmax" not in {*batch.atom_extras, *batch.system_extras}:
            values, level = fmax(batch), "system"
        else:
            values, level = self._field(batch)
        if self.custom_op is not None:
            met = jnp.asarray(self.custom_op(values))
            rows = values.shape[:1]
            if met.shape != rows or met.dtype != bool:
                raise TypeError(
                    f"custom_op of the criterion on {self.key!r} returned {met.dtype}{list(met.shape)}; "
                    f"it must return a mask, bool{list(rows)}."
                )
        else:
            met = self._reduced(values) <= self.threshold
        if level == "atom":
            # Every atom must meet it. NaN does not meet it.
            return ~any_by_system(batch, ~met)
        return met

    def _field(self, batch: Batch) -> tuple[Shaped[Array, "entries *dims"], str]:
        try:
            level = batch.level(self.key)
        except KeyError as e:
            raise KeyError(f"criterion of ConvergenceHook: {e.args[0]}") from None
        return jnp.asarray(batch[self.key]), level

    def _reduced(self, values: Shaped[Array, "entries *dims"]) -> Shaped[Array, " entries"]:
        if values.ndim == 1:
            return values
        axes: tuple[int, ...] = tuple(range(1, values.ndim))
        if self.reduce_op is not None:
            axes = (self.reduce_dims,) if isinstance(self.reduce_dims, int) else self.reduce_dims
        axes = tuple(a % values.ndim for a in axes)
        if 0 in axes:
            raise ValueError(f"reduce_dims of the criterion on {self.key!r} must leave axis 0 alone.")
        if self.reduce_op is None:
            values = jnp.max(jnp.abs(values), axis=axes)
        else:
            values = _REDUCTIONS[self.reduce_op](values, axis=axes)
        return values if values.ndim == 1 else values.reshape(values.shape[0], -1).max(axis=1)


def _is_axes(value: Any) -> bool:
    axes = value if isinstance(value, tuple) else (value,)
    return all(isinstance(a, int | np.integer) and not isinstance(a, bool) for a in axes)


class ConvergenceHook(TracedHook):
    """Advances the status of systems that meet all criteria. Traced, at AFTER_STEP.

    Reads the fields that the criteria name; writes `status`. A system whose status it advances has newly
    converged in this step, and ON_CONVERGE follows. It is also called after the first evaluation, so that a
    system that meets the criteria at the start takes no step.

    Args:
        criteria: a list of dictionaries with the arguments of `Criterion` (key, threshold, reduce_op,
            reduce_dims, custom_op) or of Criterion objects, or a single one. All must be met. By default fmax
            at or below 0.05 eV/Å.
        source_status: only systems with this status are judged; by default all unfinished systems.
        target_status: their new status; by default one more than the old one.
        frequency: number of steps from one check to the next.
        cell: whether a criterion on forces ("fmax" or "forces") brings the stress with it where a cell is
            relaxed and no criterion reads the stress: smax at or below 6e-4 eV/Å³ (0.1 GPa), and the force
            on the cell, of which each row is V stress/atoms, at or below the threshold of the forces, as in
            ASE. In a perfect crystal all forces vanish by symmetry, whatever the cell.

    Raises:
        ValueError, TypeError: naming what is wrong with a criterion; for an empty list.
    """

    criteria: tuple[Criterion, ...]
    source_status: int | None = eqx.field(static=True)
    target_status: int | None = eqx.field(static=True)
    frequency: int = eqx.field(static=True)
    stage: DynamicsStage = eqx.field(static=True)
    cell: bool = eqx.field(static=True)

    judges_convergence: ClassVar[bool] = True

    def __init__(
        self,
        criteria: Mapping[str, Any] | Criterion | Iterable[Any] | None = None,
        source_status: int | None = None,
        target_status: int | None = None,
        frequency: int = 1,
        cell: bool = True,
    ):
        if criteria is None:
            criteria = (Criterion(),)
        elif isinstance(criteria, Mapping | Criterion):
            criteria = (criteria,)
        elif isinstance(criteria, str) or not isinstance(criteria, Iterable):
            raise TypeError(f"criteria must be dicts or Criterion objects, not {criteria!r}.")
        self.criteria = tuple(_criterion(c) for c in criteria)
        if not self.criteria:
            raise ValueError(
                "criteria is empty, so every system would be converged at once: leave it out for the "
                f"default, fmax at or below {FMAX} eV/Å, or leave the hook out."
            )
        self.source_status = _status("source_status", source_status)
        self.target_status = _status("target_status", target_status)
        self.frequency = frequency
        self.cell = as_flag("cell")(cell)
        self.stage = DynamicsStage.AFTER_STEP

    @classmethod
    def from_fmax(cls, threshold: Any = FMAX, **kwargs: Any) -> "ConvergenceHook":
        """Converged where the largest force norm is at or below `threshold`, eV/Å. Where a cell is relaxed
        the stress is judged, too (see `cell`)."""
        return cls({"key": "fmax", "threshold": threshold}, **kwargs)

    @classmethod
    def from_forces(cls, threshold: Any = FMAX, **kwargs: Any) -> "ConvergenceHook":
        """Converged where the norm of the force on every atom is at or below `threshold`, eV/Å: the same as
        `from_fmax`, written with the field `forces`."""
        criterion = {"key": "forces", "threshold": threshold, "reduce_op": "norm", "reduce_dims": -1}
        return cls(criterion, **kwargs)

    @classmethod
    def from_stress(cls, threshold: Any = SMAX, **kwargs: Any) -> "ConvergenceHook":
        """Converged where the largest component of the stress is at or below `threshold`, eV/Å³. Under an
        external pressure it is that of the stress plus the pressure."""
        return cls({"key": "smax", "threshold": threshold}, **kwargs)

    @property
    def needs_stress(self) -> bool:
        """Whether a criterion reads the stress."""
        # With `cell` it is read where a cell is relaxed; the algorithm needs it there anyway.
        return any(c.key in _OF_STRESS for c in self.criteria)

    def init(self, batch: Batch) -> PerSystem | None:
        if any(c.key == "energy_change" for c in self.criteria):
            return PerSystem(jnp.full_like(batch.energy, jnp.inf))
        return None

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        batch = ctx.batch
        met = jnp.asarray(ctx.active_mask)
        if self.source_status is not None:
            met = met & (batch.status == self.source_status)
        stress, relaxed = batch.stress, jnp.zeros_like(met)
        # A workflow that is not an engine relaxes no cells.
        if hasattr(ctx.workflow, "unbalanced_stress"):
            stress, relaxed = ctx.workflow.unbalanced_stress(batch), ctx.workflow.relaxes_cell(batch)
        previous = None if ctx.memory is None else ctx.memory.value
        for criterion in self.criteria:
            met = met & criterion.converged(batch, previous, stress)
            if self._brings_stress(criterion):
                met = met & (_balanced(batch, stress, criterion.threshold) | ~relaxed)
        target = batch.status + 1 if self.target_status is None else self.target_status
        ctx = ctx.with_batch(status=jnp.where(met, target, batch.status))
        return ctx if ctx.memory is None else ctx.with_memory(PerSystem(batch.energy))

    def _brings_stress(self, criterion: Criterion) -> bool:
        """Whether the stress must be small, too, where a cell is relaxed."""
        return self.cell and not self.needs_stress and criterion.key in _OF_FORCES

    def __repr__(self) -> str:
        shown = [repr(c) for c in self.criteria]
        if any(map(self._brings_stress, self.criteria)):
            shown.append("and the stress where the cell is relaxed")
        return f"ConvergenceHook({', '.join(shown)})"


#: Keys of criteria on forces, and on the stress.
_OF_FORCES, _OF_STRESS = ("fmax", "forces"), ("stress", "smax")


def _balanced(
    batch: Batch, stress: Float[Array, "systems 3 3"], threshold: Float[Array, "*n"]
) -> Bool[Array, " systems"]:
    """Systems whose cell is relaxed: see the argument `cell` of ConvergenceHook."""
    largest = jnp.max(jnp.abs(stress), axis=(1, 2))
    rows = root(jnp.max(jnp.sum(stress * stress, axis=2), axis=1))
    per_atom = volume(batch) / jnp.maximum(batch.atoms_per_system, 1).astype(batch.dtype)
    return (largest <= SMAX) & (per_atom * rows <= threshold)


def _status(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ValueError(f"{name} must be a status, 0, 1, ..., not {value!r}.")
    return int(value)


def _criterion(given: Any) -> Criterion:
    if isinstance(given, Criterion):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(f"a criterion is a dict or a Criterion, not a {type(given).__name__}.")
    names = [f.name for f in dataclasses.fields(Criterion)]
    unknown = sorted(set(given) - set(names))
    if unknown or "key" not in given:
        fault = f"has no entry {unknown[0]!r}" if unknown else "needs a key"
        raise ValueError(f"a criterion {fault}; its entries are {', '.join(names)}.")
    if "threshold" not in given and given.get("custom_op") is None:
        raise ValueError(f"the criterion on {given['key']!r} needs a threshold or a custom_op.")
    return Criterion(**given)


__all__ = ["ConvergenceHook", "Criterion"]
