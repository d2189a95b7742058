"""Structures with labels as rows of two arrays, and batches of them, unpacked inside the compiled step.

A batch and its neighbor list have fifty arrays. Making and passing these for each step would cost more than
a small network does, so a structure is one row of floats and one of integers, in the layout of its bucket,
and the step takes them apart.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from alchemi_jax.neighbors import ListSizes, NeighborList, Requirements, empty_list
from alchemi_jax.neighbors.edge_upkeep import renew_edges
from alchemi_jax.neighbors.geometry import inverse, working_cell
from alchemi_jax.neighbors.list import lattice_offset, owners
from alchemi_jax.neighbors.rows import NeighborRows
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import level_fields, unsafe_make, without_arrays
from alchemi_jax.systems.metadata import EMPTY, Metadata, as_metadata


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a row consists of: the sizes of the largest structure in a bucket, and the labels.

    Attributes:
        systems: structures of one batch.
        atoms, neighbors, images: of one structure; neighbors of one atom.
        labels: name, level ("atom" or "system") and shape of each label beyond energy, forces and stress.
        requirements: of the model, with the sizes of its edges; None for a model without a list.
    """

    systems: int
    atoms: int
    neighbors: int = 0
    images: int = 0
    edges: int = 0
    per_atom: int = 0
    bonds: int = 0
    triplets: int = 0
    long_edges: int = 0
    labels: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    requirements: Requirements | None = None

    @property
    def floats(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each part of a row of floats."""
        n = self.atoms
        extras = [(name, (n, *shape) if level == "atom" else shape) for name, level, shape in self.labels]
        return [
            ("positions", (n, 3)),
            ("forces", (n, 3)),
            ("masses", (n,)),
            ("cell", (3, 3)),
            ("stress", (3, 3)),
            ("energy", ()),
            ("charge", ()),
            ("spin", ()),
            *extras,
        ]

    @property
    def integers(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each part of a row of integers."""
        n, m = self.atoms, self.images
        return [
            ("count", ()),
            ("pbc", (3,)),
            ("numbers", (n,)),
            ("fixed", (n, 3)),
            ("wrap", (n, 3)),
            ("index", (n, self.neighbors)),
            ("source", (m,)),
            ("shift", (m, 3)),
        ]

    @property
    def sizes(self) -> ListSizes | None:
        """Room in the list of a whole batch."""
        if self.requirements is None:
            return None
        s = self.systems
        return ListSizes(
            neighbors=max(self.neighbors, 1),
            # More than one says that there are cells.
            images=max(s * self.images, 2) if self.images else 1,
            candidates=max(self.neighbors, 1),
            groups=0,
            # One place of padding: what is no bond is gathered from the last place.
            edges=s * self.edges + 1 if self.requirements.edges else 0,
            per_atom=max(self.per_atom, 1) if self.requirements.per_atom else 0,
            bonds=s * self.bonds + 1 if self.requirements.inner_cutoff is not None else 0,
            triplets=s * self.triplets + 1 if self.requirements.inner_cutoff is not None else 0,
            long_edges=s * self.long_edges + 1 if self.requirements.long_cutoff is not None else 0,
        )


def pack_rows(
    layout: Layout,
    structures: Sequence[AtomicData],
    lists: Sequence[NeighborRows | None],
    labels: Sequence[dict[str, Any]],
    dtype: Any,
) -> tuple[Float[np.ndarray, "rows floats"], Int[np.ndarray, "rows integers"]]:
    """One row of floats and one of integers for each structure.

    Args:
        labels: of each structure, by the names in the layout; NaN stands for those that it does not have.
    """
    n = len(structures)
    floats = {
        # NaN where there is no label, also in padding; zero elsewhere.
        name: np.full((n, *shape), 0.0 if name in ("positions", "masses", "cell") else np.nan)
        for name, shape in layout.floats
    }
    integers = {name: np.zeros((n, *shape), np.int32) for name, shape in layout.integers}
    integers["index"][:] = -1
    for k, (data, pairs) in enumerate(zip(structures, lists, strict=True)):
        atoms = len(data)
        for name in ("positions", "forces", "masses"):
            floats[name][k, :atoms] = getattr(data, name)
        for name in ("cell", "stress", "energy", "charge", "spin"):
            floats[name][k] = getattr(data, name)
        for name, level, _ in layout.labels:
            if name in labels[k]:
                floats[name][(k, slice(atoms)) if level == "atom" else k] = labels[k][name]
        integers["count"][k] = atoms
        integers["pbc"][k] = data.pbc
        integers["numbers"][k, :atoms] = data.numbers
        integers["fixed"][k, :atoms] = data.fixed[:, None] | data.fixed_components
        if pairs is None:
            continue
        images = len(pairs.source)
        index = pairs.index
        # In a row images come after the places for atoms.
        index = np.where(index >= atoms, index - atoms + layout.atoms, index)
        integers["index"][k, :atoms, : index.shape[1]] = index
        integers["wrap"][k, :atoms] = pairs.wrap
        integers["source"][k, :images] = pairs.source
        integers["shift"][k, :images] = pairs.shift
    table = np.concatenate([a.reshape(n, -1) for a in floats.values()], axis=1).astype(dtype)
    whole = np.concatenate([a.reshape(n, -1) for a in integers.values()], axis=1)
    small = not whole.size or np.abs(whole).max() < 2**15
    return table, whole.astype(np.int16 if small else np.int32)


class PackedBatch(eqx.Module):
    """Structures with labels as rows of two arrays; `unpack` gives the batch and its neighbor list.

    Attributes:
        floats: [systems, floats], in the order of the layout.
        integers: [systems, integers], in the order of the layout.
        ids: [systems], numbers of the structures in the data; -1 in padding.
        meta: names and `info`, on the host.
    """

    floats: Float[Array, "systems floats"]
    integers: Int[Array, "systems integers"]
    ids: Int[Array, " systems"]
    layout: Layout = eqx.field(static=True)
    meta: Metadata = without_arrays(default=EMPTY, converter=as_metadata)

    @classmethod
    def of(cls, floats: Any, integers: Any, ids: Any, layout: Layout, meta: Metadata) -> "PackedBatch":
        """A batch without the checks of a Module, on the device.

        On a CPU the arrays stay numpy arrays, which a compiled step reads faster than copies on the device
        are made.
        """
        arrays = {"floats": floats, "integers": integers, "ids": ids}
        if jax.default_backend() != "cpu":
            arrays = jax.device_put(arrays)
        return unsafe_make(cls, {**arrays, "layout": layout, "meta": meta})

    @property
    def num_systems(self) -> int:
        """Number of structures without padding; on the host."""
        return int((np.asarray(self.ids) >= 0).sum())

    def to_batch(self) -> Batch:
        """The batch, with names, on the host."""
        return _unpack_once(self).with_meta(self.meta)

    def deal(self, n: int) -> "tuple[PackedBatch, PackedBatch, np.ndarray]":
        """The batch in n parts for n devices.

        Returns:
            The batch, its structures in n parts [n, ...], and the place of each among all parts.
        """
        systems = self.layout.systems
        each = -(-systems // n)
        # Rows of padding may be those of any structure.
        rows = np.minimum(np.arange(n * each), systems - 1).reshape(n, each)
        there = np.arange(n * each).reshape(n, each) < systems
        parts = {
            "floats": self.floats[rows],
            "integers": self.integers[rows],
            "ids": (np.where if isinstance(self.ids, np.ndarray) else jnp.where)(there, self.ids[rows], -1),
            "layout": dataclasses.replace(self.layout, systems=each),
            "meta": EMPTY,
        }
        return self, unsafe_make(PackedBatch, parts), np.arange(systems, dtype=np.int32)

    def unpack(self) -> tuple[Batch, NeighborList | None]:
        """The batch, with labels in its fields and extras, and a list of all neighbors, for compiled code.

        Labels that are missing are NaN. The list has the edges that the model asks for; it needs no update
        as long as the positions stay as they are.
        """
        return _unpack(self)


def _take_apart(table: Shaped[Array, "systems n"], parts: Any) -> dict[str, Shaped[Array, "systems ..."]]:
    out, begin = {}, 0
    for name, shape in parts:
        size = int(np.prod(shape, dtype=int))
        out[name] = table[:, begin : begin + size].reshape(table.shape[0], *shape)
        begin += size
    return out


def _batch_of(item: PackedBatch) -> tuple[Batch, dict[str, Any], Int[Array, " atoms"]]:
    """The batch, the integers of the rows, and for each atom its place among all rows."""
    layout, n = item.layout, item.layout.atoms
    # Outside of compiled code they may be arrays of numpy.
    table, whole, ids = (jnp.asarray(a) for a in (item.floats, item.integers, item.ids))
    f = _take_apart(table, layout.floats)
    i = _take_apart(whole.astype(jnp.int32), layout.integers)
    systems, there = layout.systems, ids >= 0
    counts = jnp.where(there, i["count"], 0)
    end = jnp.cumsum(counts, dtype=jnp.int32)
    first = end - counts
    atom = jnp.arange(systems * n, dtype=jnp.int32)
    owner = jnp.sum(atom[:, None] >= end[None, :], axis=1, dtype=jnp.int32)
    last = jnp.minimum(owner, systems - 1)
    real = owner < systems
    place = jnp.where(real, last * n + atom - first[last], 0)

    def of_atoms(values: Shaped[Array, "systems atoms *dims"], fill: Any = 0) -> Shaped[Array, "rows *dims"]:
        rows = values.reshape(systems * n, *values.shape[2:])[place]
        return jnp.where(real.reshape(-1, *(1,) * (rows.ndim - 1)), rows, fill)

    def of_systems(values: Shaped[Array, "systems *dims"], fill: Any = 0) -> Shaped[Array, "systems *dims"]:
        return jnp.where(there.reshape(-1, *(1,) * (values.ndim - 1)), values, fill)

    dtype, nothing = table.dtype, jnp.zeros(systems, jnp.int32)
    held = of_atoms(i["fixed"]) > 0
    whole = held.all(axis=1)
    extras = {"atom": {}, "system": {}}
    for name, level, _ in layout.labels:
        extras[level][name] = of_atoms(f[name]) if level == "atom" else of_systems(f[name])
    fields = {
        "positions": of_atoms(f["positions"]),
        "numbers": of_atoms(i["numbers"]),
        "masses": of_atoms(f["masses"], 1),
        "velocities": jnp.zeros((systems * n, 3), dtype),
        "forces": of_atoms(f["forces"]),
        "fixed": whole | ~real,
        "fixed_components": held & ~whole[:, None],
        "batch_idx": owner,
        "cell": of_systems(f["cell"]),
        "pbc": of_systems(i["pbc"]) > 0,
        "energy": of_systems(f["energy"]),
        "stress": of_systems(f["stress"]),
        "charge": of_systems(f["charge"]),
        "spin": of_systems(f["spin"], 1),
        "atoms_per_system": counts,
        "first_atom": first,
        "system_id": ids,
        **dict.fromkeys(("status", "outcome", "reason", "steps_taken", "stage_steps"), nothing),
        **dict.fromkeys(("converged", "failed"), nothing > 0),
        "time": jnp.zeros(systems, dtype),
        **dict.fromkeys(("target_temperature", "target_pressure"), jnp.full(systems, jnp.nan, dtype)),
        "atom_extras": extras["atom"],
        "system_extras": extras["system"],
    }
    assert set(fields) == {name for name, _ in level_fields(Batch)}
    return unsafe_make(Batch, {**fields, "largest": n, "meta": EMPTY}), i, place


@jax.jit
def _unpack_once(item: PackedBatch) -> Batch:
    return _batch_of(item)[0]


def _unpack(item: PackedBatch) -> tuple[Batch, NeighborList | None]:
    layout, n, m = item.layout, item.layout.atoms, item.layout.images
    batch, i, place = _batch_of(item)
    sizes, required = layout.sizes, layout.requirements
    if sizes is None or required is None:
        return batch, None
    assert required.cutoff is not None, "there is a list"
    systems, atoms = layout.systems, batch.atom_capacity
    system = jnp.minimum(batch.batch_idx, systems - 1)
    base = batch.first_atom[system][:, None]

    index = i["index"].reshape(systems * n, -1)[place]
    far = atoms + sizes.images
    image = atoms + system[:, None] * m + index - n
    index = jnp.where(index >= n, image, index + base)
    unused = (i["index"].reshape(systems * n, -1)[place] < 0) | ~batch.atom_mask[:, None]
    index = jnp.where(unused, far, index).T
    if not layout.neighbors:
        index = jnp.full((1, atoms), far, jnp.int32)

    empty = empty_list(batch, required.cutoff, 0.0, sizes, required)
    fields: dict[str, Any] = {
        "index": index,
        "used": jnp.full((), sizes.neighbors, jnp.int32),
        "ref_pbc": batch.pbc,
        "ref_id": batch.system_id,
        "built": jnp.ones((), bool),
        "builds": jnp.ones((), jnp.int32),
    }
    if sizes.periodic:
        first = jnp.minimum(batch.first_atom, atoms - 1)[:, None]
        source = jnp.minimum(i["source"] + first, atoms - 1).reshape(-1)
        moved = i["shift"].reshape(-1, 3)
        missing = sizes.images - len(source)
        if missing:
            source, moved = jnp.pad(source, (0, missing)), jnp.pad(moved, ((0, missing), (0, 0)))
        wrap = jnp.where(batch.atom_mask[:, None], i["wrap"].reshape(systems * n, 3)[place], 0)
        shift = jnp.concatenate([wrap, moved]).T.astype(batch.dtype)
        lists = dataclasses.replace(empty, source=source, shift=shift)
        fields |= {
            "source": source,
            "shift": shift,
            "offset": lattice_offset(shift, batch.cell, owners(batch, lists)),
            "ref_inverse": inverse(working_cell(batch.cell, batch.pbc)),
        }
    neighbors = dataclasses.replace(empty, **fields)
    if required.edges:
        neighbors = renew_edges(batch, neighbors)
    return batch, neighbors


__all__ = ["Layout", "PackedBatch", "pack_rows"]
