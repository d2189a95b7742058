"""Building a neighbor list on the device: images first, then pairs, both through bit masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from alchemi_jax.batch import Batch
from alchemi_jax.capacity import round_up
from alchemi_jax.neighbors import bits
from alchemi_jax.neighbors.geometry import face_distances, inverse, lattice_shift, working_cell
from alchemi_jax.neighbors.list import ListSizes, NeighborList
from alchemi_jax.segments import any_by_system, max_by_system, row_index, to_atoms, use_rows


ALL_PAIRS = 32
"""A free system of at most so many atoms lists all its pairs, and its list is never due again."""


def guess_sizes(batch: Batch, cutoff: float, skin: float) -> ListSizes:
    """Capacities from densities, on the host: usually enough; if not, the driver grows them."""
    host = batch.take()
    reach = cutoff + skin
    counts = host.atoms_per_system.astype(np.int64)
    n_systems = len(counts)
    cell, pbc = np.asarray(host.cell, np.float64), np.asarray(host.pbc)
    periodic = pbc.any(axis=1)
    full = np.array([_working_cell(c, p) for c, p in zip(cell, pbc, strict=True)])
    inv = np.linalg.inv(full)
    faces = 1 / np.linalg.norm(inv, axis=1)
    fractional = np.einsum("na,nab->nb", np.asarray(host.positions, np.float64), inv[host.batch_idx])
    low = np.full((n_systems, 3), np.inf)
    high = np.full((n_systems, 3), -np.inf)
    np.minimum.at(low, host.batch_idx, fractional)
    np.maximum.at(high, host.batch_idx, fractional)
    span = np.clip(high - low, 1e-9, None)
    span = np.where(pbc, np.minimum(span, 1.0), span) * faces
    # Images within reach of the box that holds the atoms.
    grown = np.prod(np.where(pbc, 1 + (2 * reach) / np.maximum(faces, 1e-9), 1.0), axis=1)
    images = np.where(periodic, counts * (grown - 1) * 1.1 + 8 * periodic, 0)
    shifts = np.prod(np.where(pbc, 2 * np.ceil(reach / faces + 1e-3) + 1, 1), axis=1)
    # Neighbors from the density of the space that the atoms fill and the part of a sphere in it.
    extent = span + np.where(pbc, np.maximum(faces / counts[:, None], 3.0), 3.0)
    filled = np.prod(np.where(pbc, np.minimum(faces, extent), extent), axis=1)
    box = np.prod(np.where(pbc, 2 * reach, np.minimum(extent, 2 * reach)), axis=1)
    volume = np.minimum(4 / 3 * np.pi * reach**3, box)
    around = np.where(periodic, counts * grown, counts)
    estimate = np.minimum(1.25 * counts / filled * volume + 4, around - 1)
    free_small = ~periodic & (counts <= ALL_PAIRS)
    estimate = np.where(free_small, counts - 1, estimate)
    return ListSizes(
        neighbors=round_up(int(np.ceil(estimate.max())), 4, 1),
        images=round_up(int(images.sum()), 8, 1),
        candidates=round_up(int(np.ceil((counts + images).max())), 4, bits.WORD),
        shifts=round_up(int(shifts.max()), 4, bits.WORD),
    )


def _working_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """`geometry.working_cell` in numpy, up to the choice of the vectors that do not matter."""
    if pbc.all():
        return cell
    rows = cell[pbc]
    _, _, vt = np.linalg.svd(rows.reshape(-1, 3)) if len(rows) else (0, 0, np.eye(3))
    full = cell.copy()
    full[~pbc] = vt[len(rows) :]
    return full


def grow(sizes: ListSizes, needs: np.ndarray) -> ListSizes:
    """Capacities that hold `needs`, with some room so that the next step does not overflow again."""
    held = dataclasses.astuple(sizes)
    margin = (1.1, 1.1, 1.1, 1.0)
    new = [
        round_up(int(n * m) + 1, 8) if n > h else h
        for n, h, m in zip(needs.tolist(), held, margin, strict=True)
    ]
    return ListSizes(*new)


def empty_list(batch: Batch, cutoff: float, skin: float, sizes: ListSizes) -> NeighborList:
    """A list of the right shapes in which every system is due."""
    n, s = batch.atom_capacity, batch.system_capacity
    places = n + sizes.images
    false = jnp.zeros((), bool)
    zero = jnp.zeros((), jnp.int32)
    return NeighborList(
        index=jnp.full((sizes.neighbors, n), places, jnp.int32),
        used=zero,
        source=jnp.zeros(sizes.images, jnp.int32),
        shift=jnp.zeros((places, 3), batch.dtype),
        offset=jnp.zeros((places, 3), batch.dtype),
        ref_positions=jnp.asarray(batch.positions),
        ref_cell=jnp.asarray(batch.cell),
        offset_cell=jnp.asarray(batch.cell),
        ref_pbc=jnp.asarray(batch.pbc),
        ref_id=jnp.full(s, -2, jnp.int32),
        complete=jnp.zeros(s, bool),
        needs=jnp.zeros(4, jnp.int32),
        overflow=false,
        builds=zero,
        cutoff=cutoff,
        skin=skin,
        sizes=sizes,
    )


def build(batch: Batch, neighbors: NeighborList, stale: Bool[Array, " systems"]) -> NeighborList:
    """The list from the present positions of stale systems and the references of the others."""
    stale_atom = to_atoms(batch, stale)[:, None]
    positions = jnp.where(stale_atom, batch.positions, neighbors.ref_positions)
    # What is not finite is flagged by the energy; here it only must not spread.
    safe = jnp.where(jnp.isfinite(positions), positions, 0)
    cell = jnp.where(stale[:, None, None], batch.cell, neighbors.ref_cell)
    sizes, reach = neighbors.sizes, neighbors.cutoff + neighbors.skin
    far = batch.atom_capacity + sizes.images

    images = _images(batch, safe, cell, reach, sizes)
    shift = jnp.concatenate([-images.wrapped, images.shift]).astype(batch.dtype)
    source = images.source
    owner = jnp.concatenate([batch.batch_idx, batch.batch_idx[source]])
    full_cell = jnp.take(cell, owner, axis=0, mode="clip")
    reference = jnp.concatenate([safe, safe[source]]) + jnp.einsum("ma,mab->mb", shift, full_cell)

    index, used, all_listed, need_candidates = _pairs(batch, reference, images, reach, sizes)
    needs = jnp.stack([used, images.total, need_candidates, images.need_shifts])
    held = jnp.array(dataclasses.astuple(sizes), jnp.int32)
    now_cell = jnp.take(batch.cell, owner, axis=0, mode="clip")
    free = ~jnp.any(batch.pbc, axis=-1)
    return dataclasses.replace(
        neighbors,
        index=jnp.where(index < 0, far, index),
        used=jnp.minimum(used, sizes.neighbors),
        source=source,
        shift=shift,
        offset=jnp.einsum("ma,mab->mb", shift, now_cell),
        ref_positions=positions,
        ref_cell=cell,
        offset_cell=batch.cell,
        ref_pbc=batch.pbc,
        ref_id=batch.system_id,
        complete=free & all_listed,
        needs=needs,
        overflow=neighbors.overflow | jnp.any(needs > held),
        builds=neighbors.builds + 1,
    )


@dataclasses.dataclass(frozen=True)
class _Images:
    wrapped: Array  # [atoms, 3], lattice shift that wraps each atom, to be subtracted
    source: Array  # [images]
    shift: Array  # [images, 3], relative to the raw position of the source
    first: Array  # [systems], number of the first image of each system
    count: Array  # [systems]
    total: Array
    need_shifts: Array


def _images(batch: Batch, positions: Array, cell: Array, reach: float, sizes: ListSizes) -> _Images:
    """Images within reach of the box (along the lattice vectors) that holds a system's wrapped atoms."""
    n = batch.atom_capacity
    inv = jax.vmap(inverse)(jax.vmap(working_cell)(cell, batch.pbc))
    fractional = jnp.einsum("na,nab->nb", positions, to_atoms(batch, inv))
    pbc = to_atoms(batch, batch.pbc)
    wrapped = jnp.where(pbc & batch.atom_mask[:, None], jnp.floor(fractional), 0).astype(jnp.int32)
    inside = fractional - wrapped

    faces = jax.vmap(face_distances)(inv)
    # A little more than reach: what rounding puts on the wrong side only costs an image.
    margin = reach / faces * (1 + 1e-4) + 1e-4
    around = jnp.where(batch.pbc, jnp.ceil(margin), 0).astype(jnp.int32)
    around = jnp.where(batch.system_mask[:, None], around, 0)
    high = jnp.stack([max_by_system(batch, inside[:, k], -jnp.inf) for k in range(3)], -1) + margin
    low = -jnp.stack([max_by_system(batch, -inside[:, k], -jnp.inf) for k in range(3)], -1) - margin
    high, low, reach_atom = (to_atoms(batch, v) for v in (high, low, around))
    per_system = jnp.prod(2 * around + 1, axis=-1, dtype=jnp.int32)
    n_shifts = to_atoms(batch, per_system)

    words = -(-sizes.shifts // bits.WORD)
    lane = jnp.arange(bits.WORD, dtype=jnp.int32)[:, None]

    def word(w: Array) -> Array:
        number = w * bits.WORD + lane
        shift = lattice_shift(jnp.broadcast_to(number, (bits.WORD, n)), reach_atom[None])
        moved = inside[None] + shift
        near = jnp.all((moved >= low[None]) & (moved <= high[None]), axis=-1)
        hit = near & jnp.any(shift != 0, axis=-1) & (number < n_shifts[None])
        hit &= batch.atom_mask[None]
        return bits.pack(hit)

    masks = jax.lax.map(word, jnp.arange(words, dtype=jnp.int32))
    cumulative = bits.counts(masks)
    last = jnp.cumsum(cumulative[-1], dtype=jnp.int32)
    m = jnp.arange(sizes.images, dtype=jnp.int32)
    source = jnp.searchsorted(last, m, side="right").astype(jnp.int32)
    valid = source < n
    source = jnp.minimum(source, n - 1)
    before = last[source] - cumulative[-1][source]
    number = bits.nth_hit(masks, cumulative, jnp.where(valid, m - before, 0), source)
    shift = lattice_shift(number, reach_atom[source]) - wrapped[source]
    shift = jnp.where(valid[:, None], shift, 0)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), last])
    first = starts[jnp.clip(batch.first_atom, 0, n)]
    end = starts[jnp.clip(batch.first_atom + batch.atoms_per_system, 0, n)]
    return _Images(wrapped, source, shift, first, end - first, last[-1], per_system.max())


def _pairs(
    batch: Batch, extended: Array, images: _Images, reach: float, sizes: ListSizes
) -> tuple[Array, Array, Array, Array]:
    """One candidate of every system at a time against all atoms of that system.

    Returns the index matrix (-1 where unused), the largest number of neighbors, which systems have
    all their pairs listed, and the candidates needed.
    """
    n = batch.atom_capacity
    rows = use_rows(batch)
    free_small = ~jnp.any(batch.pbc, axis=-1) & (batch.atoms_per_system <= ALL_PAIRS)
    atoms = jnp.arange(n, dtype=jnp.int32)
    if rows:
        place, valid = row_index(batch)
    else:
        place, valid = atoms, batch.atom_mask
    own = jnp.where(valid, place, -1)
    x, y, z = (jnp.take(extended[:, a], place, mode="clip") for a in range(3))

    def spread(v: Array) -> Array:
        """[32, systems] beside every atom: a broadcast along rows, or a gather."""
        return v[:, :, None] if rows else v[:, jnp.minimum(batch.batch_idx, v.shape[1] - 1)]

    lane = jnp.arange(bits.WORD, dtype=jnp.int32)[:, None]
    n_candidates = batch.atoms_per_system + images.count

    def candidate(c: Array) -> Array:
        """Place in the extended array of candidate c of each system."""
        count = batch.atoms_per_system[None]
        of_atoms = batch.first_atom[None] + c
        return jnp.where(c < count, of_atoms, n + images.first[None] + c - count)

    def word(w: Array) -> Array:
        c = w * bits.WORD + lane
        where = candidate(c)
        there = spread(where)
        dx, dy, dz = (
            spread(jnp.take(extended[:, a], where, mode="clip")) - v[None] for a, v in enumerate((x, y, z))
        )
        near = (dx * dx + dy * dy + dz * dz <= reach**2) | spread(
            jnp.broadcast_to(free_small[None], where.shape)
        )
        hit = near & spread(c < n_candidates[None]) & (there != own[None]) & (own >= 0)[None]
        return bits.pack(hit)

    words = -(-sizes.candidates // bits.WORD)
    masks = jax.lax.map(word, jnp.arange(words, dtype=jnp.int32))
    if rows:
        local = atoms - to_atoms(batch, batch.first_atom)
        flat = jnp.minimum(batch.batch_idx, batch.system_capacity - 1) * batch.largest + local
        masks = jnp.take(masks.reshape(words, -1), flat, axis=1, mode="clip")
        masks = jnp.where(batch.atom_mask[None], masks, jnp.uint32(0))
    cumulative = bits.counts(masks)
    found = cumulative[-1]
    k = jnp.broadcast_to(jnp.arange(sizes.neighbors, dtype=jnp.int32)[:, None], (sizes.neighbors, n))
    c = bits.nth_hit(masks, cumulative, k, jnp.broadcast_to(atoms[None], k.shape))
    first, count, first_image = (
        to_atoms(batch, v)[None] for v in (batch.first_atom, batch.atoms_per_system, images.first)
    )
    index = jnp.where(c < count, first + c, n + first_image + c - count)
    index = jnp.where(k < found[None], index, -1)
    missing = any_by_system(batch, found < to_atoms(batch, batch.atoms_per_system) - 1)
    return index, found.max(), ~missing, n_candidates.max()


def resized(batch: Batch, neighbors: NeighborList, sizes: ListSizes) -> NeighborList:
    """The same list with other capacities. It is a function of its references, so that systems whose
    list is not due get the very same sums as before."""
    fresh = empty_list(batch, neighbors.cutoff, neighbors.skin, sizes)
    kept = ("ref_positions", "ref_cell", "ref_pbc", "ref_id", "builds")
    fresh = dataclasses.replace(fresh, **{name: getattr(neighbors, name) for name in kept})
    return build(batch, fresh, (fresh.ref_id != batch.system_id) & batch.system_mask)
