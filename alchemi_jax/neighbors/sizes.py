"""Capacities of a list: estimated on the host before it is first built, and grown when too small."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from alchemi_jax.neighbors.edge_needs import COUNTED, count_edges
from alchemi_jax.neighbors.groups import ROWS, group_capacity
from alchemi_jax.neighbors.limits import check_needs, check_sizes, memory
from alchemi_jax.neighbors.list import ALL_PAIRS, ListSizes, NeighborList
from alchemi_jax.neighbors.needs import Needs
from alchemi_jax.neighbors.requirements import Requirements
from alchemi_jax.neighbors.scans import MOST
from alchemi_jax.neighbors.warp import load
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.capacity import round_up, widths_per_octave
from alchemi_jax.systems.segments import use_rows


_SORTED_PLACE = 1000
"""Sorting one place of the extended array takes a cell list as long as this many comparisons."""
_MOST_CELLS = 1 << 20


def guess_sizes(
    batch: Batch,
    cutoff: float,
    skin: float,
    *,
    builder: str | None = None,
    waiting: Needs | None = None,
    requirements: Requirements | None = None,
) -> ListSizes:
    """Capacities for the present positions, with some margin. If one is too small, the driver enlarges it.

    Images and cells are counted; neighbors are estimated from densities.

    Args:
        cutoff, skin: Å.
        builder: "brute force" or "cell list", by default the one with fewer comparisons; or "warp", the
            kernels of nvalchemi-toolkit-ops, if it is installed.
        waiting: needs of all systems that may enter the batch later.
        requirements: those of a model that asks for edges.

    Raises:
        ValueError: for another builder; naming the system and the number, if no list can be made for its
            geometry.
        ImportError: saying what to install, for "warp".
    """
    if builder not in (None, "brute force", "cell list", "warp"):
        raise ValueError(f"builder is 'brute force', 'cell list', 'warp' or None, not {builder!r}.")
    r = Requirements(cutoff, skin) if requirements is None else requirements
    needs = list_needs(batch, cutoff, skin, r) if waiting is None else waiting
    if waiting is None:
        check_needs(batch, needs, cutoff, skin)
    if r.edges and cutoff >= 1000:
        raise ValueError(f"a model that asks for edges has a cutoff below 1000 Å, not {cutoff:g} Å.")
    places = batch.system_capacity

    def most(values: Shaped[np.ndarray, " n"]) -> float:
        """The most that a full batch of systems can need together."""
        return float(np.partition(values, -places)[-places:].sum() if len(values) > places else values.sum())

    rows = places * batch.largest if use_rows(batch) else group_capacity(batch) * ROWS
    brute = rows * needs.everyone.max()
    groups = round_up(int(most(needs.groups) * 1.1) + 1, 8)
    cells = groups * ROWS * needs.in_cells.max() + _SORTED_PLACE * most(needs.everyone)
    by_cells = cells < brute if builder is None else builder == "cell list"
    # Small batches of free clusters share compiled code.
    per_octave = 8 if needs.images.any() else widths_per_octave(batch.atom_capacity)
    neighbors = round_up(int(np.ceil(needs.neighbors.max())), min(per_octave, 4), 1)
    # 1 if no system is periodic: see `ListSizes.periodic`.
    room = round_up(int(most(needs.images) * 1.05) + 8, 16, 1) if needs.images.any() else 1
    graph = _edge_sizes(r, needs, most)
    if builder == "warp":
        load()
        return ListSizes(neighbors, room, candidates=int(needs.tried.max()), groups=-1, **graph)
    sizes = ListSizes(
        neighbors,
        room,
        candidates=round_up(
            int(np.ceil((needs.in_cells if by_cells else needs.everyone).max())), per_octave, 32
        ),
        groups=groups if by_cells else 0,
        **graph,
    )
    check_sizes(batch, needs, sizes, groups if by_cells else -(-rows // max(batch.largest, 1)))
    return sizes


def _edge_sizes(
    r: Requirements, needs: Needs, most: Callable[[Shaped[np.ndarray, " n"]], float]
) -> dict[str, int]:
    """Room for what is made of edges, more than there is now by a share that grows with its fluctuations."""
    sizes: dict[str, int] = {}
    if r.edges:
        sizes["edges"] = round_up(int(most(needs.edges) * 1.05) + 16, 16, 16)
    if r.per_atom:
        sizes["per_atom"] = round_up(int(needs.per_atom.max() * 1.1) + 1, 8, 1)
    if r.inner_cutoff is not None:
        sizes["bonds"] = round_up(int(most(needs.bonds) * 1.2) + 16, 8, 16)
        sizes["triplets"] = round_up(int(most(needs.triplets) * 1.4) + 32, 8, 32)
    if r.long_cutoff is not None:
        sizes["long_edges"] = round_up(int(most(needs.long_edges) * 1.05) + 16, 16, 16)
    return sizes


def fit_edges(batch: Batch, neighbors: NeighborList, sizes: ListSizes) -> ListSizes:
    """Capacities for a batch of fewer systems, at least what their edges and images need.

    Args:
        neighbors: the list of the larger batch, whose capacities are not exceeded.
        sizes: those of the larger batch, scaled.
    """
    needs = list_needs(batch, neighbors.cutoff, neighbors.skin, neighbors.requirements)
    wanted = _edge_sizes(neighbors.requirements, needs, lambda values: float(values.sum()))
    if sizes.periodic:
        wanted["images"] = round_up(int(needs.images.sum() * 1.05) + 8, 16, 1)
    old = dataclasses.asdict(neighbors.sizes)
    fitted = {name: min(max(getattr(sizes, name), n), old[name]) for name, n in wanted.items()}
    return dataclasses.replace(sizes, **fitted)


def list_needs(batch: Batch, cutoff: float, skin: float, requirements: Requirements | None = None) -> Needs:
    """What the list of each system of a batch needs at the present positions; infinite or NaN if the numbers
    overflow.

    Args:
        cutoff, skin: Å.
        requirements: those of a model that asks for edges, which are then counted.
    """
    r = Requirements(cutoff, skin) if requirements is None else requirements
    with np.errstate(all="ignore"):
        return _list_needs(batch, cutoff, skin, r)


def _list_needs(batch: Batch, cutoff: float, skin: float, r: Requirements) -> Needs:
    counts = np.asarray(batch.atoms_per_system).astype(np.int64)
    systems = int((counts > 0).sum())
    n, counts = int(counts.sum()), counts[:systems]
    owner, first = np.asarray(batch.batch_idx)[:n], np.asarray(batch.first_atom)[:systems]
    cell, pbc = np.asarray(batch.cell, np.float64)[:systems], np.asarray(batch.pbc)[:systems]
    positions = np.nan_to_num(np.asarray(batch.positions, np.float64)[:n], posinf=0, neginf=0)
    reach, free = cutoff + skin, ~pbc.any(axis=1)

    working = _working_cells(cell, pbc)
    if free.all():
        # As below, with the unit matrix for each cell.
        faces, inside = np.ones((systems, 3)), positions
    else:
        inverse = np.linalg.inv(working)
        faces = 1 / np.linalg.norm(inverse, axis=1)
        along = (positions[:, None, :] @ inverse[owner])[:, 0]
        inside = along - np.where(pbc[owner], np.floor(along), 0)
    low, high = np.minimum.reduceat(inside, first), np.maximum.reduceat(inside, first)
    margin = reach / faces * (1 + 1e-4) + 1e-4
    if free.all():
        images = np.zeros(systems)
    else:
        most = np.floor((high + margin)[owner] - inside)
        least = np.ceil((low - margin)[owner] - inside)
        copies = np.where(pbc[owner], most - least + 1, 1).prod(axis=1) - 1
        images = np.add.reduceat(copies, first)
    everyone = counts + images * 1.05
    # No list is made for these, so they need no cells.
    absurd = ~(images <= MOST)

    # Neighbors from the density of the atoms in the space that they occupy, and the part of a sphere in it.
    span = (high - low) * faces
    extent = span + np.where(pbc, np.maximum(faces / counts[:, None], 3.0), 3.0)
    filled = np.where(pbc, np.minimum(faces, extent), extent).prod(axis=1)
    box = np.where(pbc, 2 * reach, np.minimum(extent, 2 * reach)).prod(axis=1)
    sphere = np.minimum(4 / 3 * np.pi * reach**3, box)
    near = np.minimum(1.25 * counts / filled * sphere + 4, everyone - 1)
    near = np.where(free & (counts <= ALL_PAIRS), counts - 1, near)
    part = np.minimum(4 / 3 * np.pi * cutoff**3, box) / sphere
    none = np.zeros(systems)
    graph: dict[str, Shaped[np.ndarray, " systems"]] = dict.fromkeys(COUNTED, none)
    if r.edges:
        estimates = counts * np.minimum(1.15 * counts / filled * sphere * part + 2, near)
        parts = np.split(positions, first[1:])
        graph = count_edges(parts, working, pbc, r, np.where(absurd, np.inf, estimates))

    # Cells as `groups.cell_list` makes them.
    inner = np.clip(np.floor((high - low) / margin), 1, _MOST_CELLS ** (1 / 3))
    inner = np.where((absurd | (free & (counts <= ALL_PAIRS)))[:, None], 1, inner)
    width = np.maximum((high - low) / inner, margin)
    if (inner == 1).all():
        groups = np.ceil(counts / ROWS)
    else:
        at = np.clip(np.floor((inside - low[owner]) / width[owner]), 0, inner[owner] - 1)
        at = np.where(absurd[owner][:, None], 0, at)
        key = (at[:, 0] * inner[owner, 1] + at[:, 1]) * inner[owner, 2] + at[:, 2]
        occupied, atoms = np.unique(key + owner * float(_MOST_CELLS), return_counts=True)
        groups = np.bincount((occupied // _MOST_CELLS).astype(np.int64), np.ceil(atoms / ROWS), systems)
    around = np.where(pbc, 3 * width * faces, np.minimum(3 * width * faces, extent)).prod(axis=1)
    in_cells = np.minimum(1.2 * counts / filled * around + 8, everyone)

    tried = np.where(pbc, 2 * np.ceil(margin) + 1, 1).prod(axis=1)
    return Needs(near, everyone, np.maximum(images, ~free), groups, in_cells, tried, **graph)


def _working_cells(
    cell: Float[np.ndarray, "systems 3 3"], pbc: Bool[np.ndarray, "systems 3"]
) -> Float[np.ndarray, "systems 3 3"]:
    """`geometry.working_cell` in numpy; the vectors along directions that are not periodic may differ."""
    full = cell.copy()
    for pattern in {tuple(p) for p in pbc.tolist()} - {(True, True, True)}:
        chosen, periodic = (pbc == np.array(pattern)[None]).all(axis=1), np.array(pattern)
        rows = cell[chosen][:, periodic]
        full[np.ix_(chosen, ~periodic)] = np.linalg.svd(rows)[2][:, periodic.sum() :]
    return full


def check_growth(batch: Batch, neighbors: NeighborList, needs: Int[np.ndarray, " sizes"]) -> None:
    """Check that a list can grow to the capacities that it needs.

    Raises:
        ValueError: naming the system and the number, if it cannot.
    """
    arrays = 4.0 * int(needs[0]) * batch.atom_capacity
    if int(needs[1]) < MOST and arrays < memory() / 2:
        return
    found = list_needs(batch, neighbors.cutoff, neighbors.skin, neighbors.requirements)
    check_needs(batch, found, neighbors.cutoff, neighbors.skin)
    sizes = ListSizes(*(int(n) for n in needs))
    check_sizes(batch, found, sizes, max(sizes.groups, batch.system_capacity))


def grow(sizes: ListSizes, needs: Int[np.ndarray, " sizes"]) -> ListSizes:
    """Capacities that suffice for `needs`, [sizes], with some margin, so that the next step does not overflow
    again."""
    old = dataclasses.astuple(sizes)
    new = [round_up(int(n * 1.1) + 1, 8) if n > h else h for n, h in zip(needs.tolist(), old, strict=True)]
    return ListSizes(*new)


__all__ = ["check_growth", "fit_edges", "grow", "guess_sizes", "list_needs"]
