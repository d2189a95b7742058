"""Statistics of data, with which a network is prepared: energies of elements, a scale of forces."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from jaxtyping import PRNGKeyArray

from alchemi_jax.models.invariant import InvariantNetwork
from alchemi_jax.training.data import as_batches
from alchemi_jax.training.references import least_squares


def fit_element_energies(data: Any) -> dict[str, float]:
    """Energies of the elements by symbol, eV, from a least-squares fit of their sums to the energies of
    structures.

    If compositions do not determine them, as for structures of one compound, the energies are the smallest
    that fit. Energies that `Batches(subtract=...)` has subtracted are not included.

    Args:
        data: Batches, a source for Batches, or a Mixture; structures without an energy are left out.

    Raises:
        ValueError: if no structure has an energy.
    """
    return least_squares(structures_of(data))


def force_scale(data: Any) -> float:
    """Root mean square of the force components, eV/Å; 1 if there are no forces.

    Args:
        data: Batches, a source for Batches, or a Mixture.
    """
    components = np.concatenate([s.forces[np.isfinite(s.forces)] for s in structures_of(data)])
    scale = float(np.sqrt(np.mean(components**2))) if len(components) else 1.0
    return scale if scale > 0 else 1.0


def structures_of(data: Any) -> list[Any]:
    """The structures of Batches, of what they are made of, or of all sources of a Mixture."""
    if hasattr(data, "parts"):
        return [s for source, _ in data.parts for s in structures_of(source)]
    return list(as_batches(data).structures)


#: Structures of which the features of a network are standardized.
_LOOKED_AT = 256
#: A feature that hardly varies is not divided by its spread.
_LEAST_SPREAD = 1e-3


def network_for(data: Any, *, key: PRNGKeyArray, **options: Any) -> InvariantNetwork:
    """An `InvariantNetwork` for data, ready to be trained.

    It has the elements of the data, their energies by least squares, the scale of the forces, and
    standardized features.

    Args:
        data: Batches, a source for Batches, or a Mixture.
        key: PRNG key of the initial weights.
        options: `cutoff` (Å), `gaussians`, `hidden`, `angular` and other arguments of InvariantNetwork.
    """
    data = as_batches(data)
    energies = fit_element_energies(data)
    elements = sorted({int(z) for s in structures_of(data) for z in np.unique(s.numbers)})
    symbols = [chemical_symbols[z] for z in elements]
    options["energies"] = [energies.get(symbol, 0.0) for symbol in symbols]
    options["scale"] = force_scale(data)
    first = InvariantNetwork(symbols, key=key, **options)

    def of_item(item: Any) -> tuple[Any, Any]:
        batch, neighbors = item.unpack()
        # Padding is no element.
        return first.features(batch, neighbors), jnp.where(batch.atom_mask, batch.numbers, -1)

    features: Any = eqx.filter_jit(of_item)
    found, numbers, seen = [], [], 0
    for item in data.fit_to(first).in_order():
        rows, kinds = features(item)
        found.append(np.asarray(rows, np.float64))
        numbers.append(np.asarray(kinds))
        seen += item.num_systems
        if seen >= _LOOKED_AT:
            break
    rows, kinds = np.concatenate(found), np.concatenate(numbers)
    width = rows.shape[1]
    mean, spread = np.zeros((len(elements), width)), np.ones((len(elements), width))
    for k, z in enumerate(elements):
        mine = rows[kinds == z]
        if len(mine):
            mean[k] = mine.mean(axis=0)
            deviation = mine.std(axis=0)
            spread[k] = np.where(deviation > _LEAST_SPREAD, deviation, 1.0)
    return eqx.tree_at(
        lambda m: (m.mean, m.spread), first, (jnp.asarray(mean, float), jnp.asarray(spread, float))
    )


__all__ = ["fit_element_energies", "force_scale", "network_for", "structures_of"]
