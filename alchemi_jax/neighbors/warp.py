"""Pairs found by nvalchemi-toolkit-ops, through its JAX bindings: for GPUs. The extra `warp` installs it.

Its kernels give atoms and lattice shifts. Here they become places of the extended array, so that the list has
the same form as with other builders. The kernels fill rows in an order that depends on the scheduling of the
device, so rows are sorted: the list remains a function of its references.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alchemi_jax.neighbors.geometry import working_cell
from alchemi_jax.neighbors.images import Images, place_of
from alchemi_jax.neighbors.list import ListSizes
from alchemi_jax.systems.batch import Batch


def load() -> Callable[..., Any]:
    """The batched brute-force kernel.

    Raises:
        ImportError: saying what to install.
    """
    try:
        from nvalchemiops.jax.neighbors import (  # pyright: ignore[reportMissingImports]
            batch_naive_neighbor_list,
        )
    except ImportError as e:
        raise ImportError(
            "The builder 'warp' needs nvalchemi-toolkit-ops and warp-lang: in a clone of alchemi_jax "
            "pip install -e '.[warp]'."
        ) from e
    return batch_naive_neighbor_list


def find_pairs(
    batch: Batch,
    wrapped: Float[Array, "atoms 3"],
    cell: Float[Array, "systems 3 3"],
    images: Images,
    reach: float,
    sizes: ListSizes,
) -> tuple[Int[Array, "slots atoms"], Int[Array, " atoms"], Int[Array, ""]]:
    """Neighbors of each atom in ascending order of places, the far place in unused slots; their numbers; the
    most lattice shifts that any system needs.

    Args:
        wrapped: positions inside the cell, Å.
        cell: reference cells, Å.
    """
    around = jnp.where(batch.pbc & batch.system_mask[:, None], jnp.ceil(images.reach.T), 0).astype(jnp.int32)
    tried = jnp.prod(2 * around + 1, axis=1, dtype=jnp.int32)
    # The kernels need cells with a volume; padding systems have none.
    eye = jnp.eye(3, dtype=batch.dtype)[None]
    full = jnp.where(batch.system_mask[:, None, None], working_cell(cell, batch.pbc), eye)
    end = jnp.concatenate([batch.first_atom, batch.atoms_per_system.sum(dtype=jnp.int32)[None]])
    kernel = partial(
        load(),
        max_neighbors=sizes.neighbors,
        max_shifts_per_system=sizes.candidates,
        max_atoms_per_system=batch.largest,
        wrap_positions=False,
    )

    # Results of version 0.5.0 are wrong under vmap, so the lanes run one after another.
    @jax.custom_batching.sequential_vmap
    def run(positions, cell, pbc, owner, end, around, tried):
        return kernel(
            positions,
            reach * (1 + 1e-6),
            batch_idx=owner,
            batch_ptr=end,
            pbc=pbc,
            cell=cell,
            shift_range_per_dimension=around,
            num_shifts_per_system=tried,
        )

    atoms, found, shifts = run(wrapped, full, batch.pbc, batch.batch_idx, end, around, tried)
    used = (jnp.arange(sizes.neighbors)[:, None] < found[None]) & batch.atom_mask[None]
    neighbor = jnp.where(used, atoms.T, 0)
    place = place_of(images, neighbor, [shifts[:, :, k].T for k in range(3)])
    last = jnp.iinfo(jnp.int32).max
    place = jnp.sort(jnp.where(used & (place >= 0), place, last), axis=0)
    far = len(images.source) + batch.atom_capacity
    return jnp.minimum(place, far), jnp.where(batch.atom_mask, found, 0), tried.max()


__all__ = ["find_pairs", "load"]
