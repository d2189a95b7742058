"""evaluate: energies, forces and stress of structures, in one call."""

import functools
import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from alchemi_jax import neighbors as nl
from alchemi_jax.errors import description, name_of, public_call
from alchemi_jax.models.base import AbstractModel, Results, results_of, with_extra_results
from alchemi_jax.systems.batch import Batch, as_batch
from alchemi_jax.systems.capacity import check_precision
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.transforms import RUNS_ONCE, is_traced


#: Compiled without optimization, since it runs once. The types of equinox do not declare the options.
_filter_jit: Any = eqx.filter_jit


def evaluate(model: AbstractModel, structures: Any, *, stress: bool = True, dtype: Any = None) -> HostBatch:
    """Energies, forces and stress of structures.

    Args:
        model: the potential.
        structures: ASE structures, one or a list of them; a Batch or HostBatch.
        stress: whether to evaluate the stress; it costs more than forces alone.
        dtype: as in `Batch.from_ase`, unless the structures are a batch already.

    Returns:
        The structures in the same order, as a HostBatch of numpy arrays without padding. It has `energy`
        [systems], eV; `forces` [atoms, 3], eV/Å, zero where atoms are fixed; `stress` [systems, 3, 3], eV/Å³,
        NaN where a system is not periodic in all directions; further results of the model by name, as in
        `results["magmoms"]`. `to_ase()` returns ASE structures with these results; iteration gives one system
        at a time.

    Raises:
        TypeError: if `model` is not a model.
        ValueError: naming a system that the model cannot treat; or inside a transform.
    """
    if not isinstance(model, AbstractModel):
        advice = (
            ": write evaluate(ASEModel(calculator), ...)" if hasattr(model, "get_potential_energy") else ""
        )
        raise TypeError(f"evaluate takes a model and structures, not {description(model)}{advice}.")
    with public_call():
        batch = as_batch(structures, dtype)
        if is_traced((model, batch)):
            raise ValueError(
                "evaluate chooses the capacities of neighbor lists on the host, so it cannot be traced: "
                "inside jit, vmap and grad use model.evaluate(batch, neighbors), with a list made by "
                "neighbors.allocate."
            )
        check_precision("evaluate", batch.dtype)
        model.check(batch)
        needs = model.requirements
        neighbors = None if needs.cutoff is None else nl.allocate(batch, needs)
        results = _evaluate(model, batch, neighbors, stress)
        fields: dict[str, Any] = {"energy": results.energy, "forces": results.forces}
        if stress:
            fields["stress"] = results.stress
        batch = with_extra_results(batch, model)
        fields |= results.extras
        out = batch.replace(**fields).to_host()
    _warn_lost(model, out)
    return out


@functools.partial(_filter_jit, compiler_options=RUNS_ONCE)
def _evaluate(model: AbstractModel, batch: Batch, neighbors: nl.NeighborList | None, stress: bool) -> Results:
    found = results_of(model, batch, neighbors, stress=stress)
    forces = jnp.where(batch.free_components, found.forces, 0).astype(batch.dtype)
    tensor = None if found.stress is None else found.stress.astype(batch.dtype)
    extras = {name: value.astype(batch.dtype) for name, value in found.extras.items()}
    return Results(found.energy.astype(batch.dtype), forces, tensor, extras)


def _warn_lost(model: AbstractModel, batch: HostBatch) -> None:
    for field in ("energy", "forces", *model.extra_results):
        lost = ~np.isfinite(batch[field])
        rows = np.flatnonzero(lost.reshape(len(lost), -1).any(axis=1))
        rows = np.unique(batch.batch_idx[rows] if batch.level(field) == "atom" else rows).tolist()
        if rows:
            names = ", ".join(batch.name_of(row) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
            verb = "are" if field.endswith("s") else "is"
            lost = f"the {field} of {len(rows)} of {len(batch)} systems {verb} not finite"
            warnings.warn(f"{name_of(model)}: {lost}: {names}.", RuntimeWarning, stacklevel=3)
            return


__all__ = ["evaluate"]
