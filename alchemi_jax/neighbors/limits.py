"""Geometry that no neighbor list can hold: it is found by an estimate, before anything is allocated."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from alchemi_jax.neighbors.geometry import face_distances, inverse, working_cell
from alchemi_jax.neighbors.list import ListSizes, NeighborList
from alchemi_jax.neighbors.needs import Needs
from alchemi_jax.neighbors.scans import MOST
from alchemi_jax.systems.batch import Batch


@functools.cache
def memory() -> int:
    """Bytes of memory of the device, or of this machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 34


def excess(needs: Needs, counts: Shaped[np.ndarray, " systems"]) -> dict[int, str]:
    """Systems for which no list can be made: row -> reason, such as "it needs ..., at most ... are possible".

    Args:
        needs: of each system, as estimated.
        counts: [systems], number of atoms of each system.
    """
    found: dict[int, str] = {}
    pairs = np.asarray(needs.neighbors, float) * np.asarray(counts, float)
    limits = (("periodic images", needs.images, float(MOST)), ("pairs", pairs, memory() / 8))
    for name, numbers, most in limits:
        # NaN is too many.
        for row in np.flatnonzero(~(np.asarray(numbers, float) <= most)).tolist():
            needed = f"{numbers[row]:.2g} {name}, at most {most:.2g} are possible"
            found.setdefault(row, f"it needs a neighbor list of about {needed}")
    return found


def check_needs(batch: Batch, needs: Needs, cutoff: float, skin: float) -> None:
    """Check that lists of these systems can be made.

    Args:
        needs: of each system of the batch, as estimated.
        cutoff, skin: Å.

    Raises:
        ValueError: naming the first system that needs too much, and the number.
    """
    for row, reason in excess(needs, np.asarray(batch.atoms_per_system)[: len(needs.images)]).items():
        raise ValueError(
            f"{batch.name_of(row)}: {reason}. Its cell is too small for a cutoff of {cutoff:g} Å and a skin "
            f"of {skin:g} Å, or its atoms are too close."
        )


def check_sizes(batch: Batch, needs: Needs, sizes: ListSizes, groups: int) -> None:
    """Check that the arrays of a list fit into memory.

    Args:
        groups: number of groups of atoms that are compared with candidates.

    Raises:
        ValueError: naming the system that needs most, and the numbers.
    """
    if sizes.images > MOST:
        raise ValueError(
            f"the systems of this batch need {sizes.images} periodic images together, more than {MOST}: take "
            "fewer systems at a time."
        )
    most = sizes.neighbors * batch.atom_capacity + sizes.candidates * groups + 16 * sizes.images
    graph = 40 * (sizes.edges + sizes.long_edges) + 8 * sizes.bonds + 16 * sizes.triplets
    bytes_ = 4 * most + graph
    if bytes_ > memory() / 2:
        row = int(np.argmax(np.maximum(needs.neighbors, needs.everyone / 8)))
        name = batch.name_of(row) if len(needs.images) <= batch.num_systems else "a system"
        raise ValueError(
            f"the neighbor list of this batch needs {bytes_ / 2**30:.3g} GiB, and there are "
            f"{memory() / 2**30:.3g} GiB: {name} alone has {needs.everyone[row]:.3g} atoms and periodic "
            f"images, and {needs.neighbors[row]:.3g} neighbors of an atom. Its cell is too small for the "
            "cutoff, or there are too many systems at a time."
        )


def too_dense(batch: Batch, neighbors: NeighborList) -> Bool[Array, " systems"]:
    """Systems whose cell has become so small that a list would not fit into memory, [systems]. Traced.

    It is judged by the density, before the list is built: many times the present capacity, and a large part
    of the memory.
    """
    reach = neighbors.cutoff + neighbors.skin
    faces = face_distances(inverse(working_cell(batch.cell, batch.pbc)))
    around = jnp.where(batch.pbc, 2 * reach / faces + 1, 1)
    count = batch.atoms_per_system.astype(batch.dtype)
    everyone = count * around[:, 0] * around[:, 1] * around[:, 2]
    a, b, c = (batch.cell[:, k] for k in range(3))
    volume = jnp.abs(jnp.sum(a * jnp.cross(b, c), axis=-1))
    density = count / jnp.where(volume > 0, volume, 1)
    sphere = jnp.where(volume > 0, density * (4.19 * reach**3), 0)
    near = jnp.where(jnp.all(batch.pbc, axis=-1), jnp.minimum(everyone, sphere), everyone)
    slots = max(4 * neighbors.slots, memory() // 128 // batch.atom_capacity)
    places = max(4 * neighbors.sizes.candidates, memory() // 128 // batch.system_capacity)
    periodic = jnp.any(batch.pbc, axis=-1) & batch.system_mask
    # What is not finite is found where energies are checked.
    return periodic & ((near > slots) | (everyone > min(places, MOST))) & jnp.isfinite(everyone)


MOST_DENSE = 10.0
"""Atoms per Å³ that no matter has: hydrogen at the highest pressures of a laboratory has about one."""


def collapsed(batch: Batch) -> Bool[Array, " systems"]:
    """Systems that are periodic in all directions and denser than any matter, [systems]. Traced.

    Without this check a list would grow with a collapsing cell until it fills the memory.
    """
    a, b, c = (batch.cell[:, k] for k in range(3))
    volume = jnp.abs(jnp.sum(a * jnp.cross(b, c), axis=-1))
    dense = batch.atoms_per_system.astype(batch.dtype) > MOST_DENSE * volume
    return dense & jnp.all(batch.pbc, axis=-1) & batch.system_mask


__all__ = ["MOST_DENSE", "check_needs", "check_sizes", "collapsed", "excess", "memory", "too_dense"]
