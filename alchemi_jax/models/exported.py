"""ExportedModel: a potential that `jax.export` has saved, from a file and without the code that made it."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float

from alchemi_jax.models.base import AbstractModel, need_edges
from alchemi_jax.models.elements import atomic_number, check_elements
from alchemi_jax.neighbors import EdgeList, NeighborList, Requirements
from alchemi_jax.neighbors.triplets import edges_within
from alchemi_jax.parameters import positive_length
from alchemi_jax.systems.batch import Batch


#: Files in an archive.
MODEL, METADATA, PARAMETERS = "model.jax", "metadata.json", "params.msgpack"
#: Inputs that a function may use or not; it says so in the metadata.
_OPTIONAL = {"charge": 0.0, "spin": 1.0}
_INPUTS = ("atomic_numbers", "batch", "cell", "cell_offsets", "charge", "edge_index", "pbc", "pos", "spin")


class ExportedModel(AbstractModel):
    """A function that `jax.export` has saved, with parameters and a small file of metadata.

    The function is called with its parameters (if it has any) and a dict of arrays, and returns the energy of
    each system, eV:

        pos [atoms, 3] Å, atomic_numbers [atoms]
        batch [atoms]: the system of each atom
        cell [systems, 3, 3] Å, pbc [systems, 3]
        charge [systems] e, spin [systems] multiplicity
        edge_index [2, edges], cell_offsets [edges, 3]: whole numbers of lattice vectors

    The vector of an edge is `pos[edge_index[1]] - pos[edge_index[0]] + cell_offsets @ cell`. Every pair
    within the cutoff is there in both directions. The last atom, alone in the last system, is padding, to
    which the edges of padding belong; these are longer than the cutoff. Forces and stress are gradients of
    the energy.

    The archive has the form that kUPS publishes (`model.jax`, `metadata.json`, `params.msgpack`);
    `save_exported` writes it. Metadata has `cutoff` (Å) and may have `elements` (symbols or atomic numbers)
    and `takes` (of "charge" and "spin", what the function uses; without them it gets zeros).

    Energies have the precision with which the function was exported.

    Args:
        parameters: arrays of the function, in its order; leaves.
        function: the saved function.
        cutoff: Å. skin: Å, added to the cutoff of the neighbor list.
        elements: atomic numbers that it knows; None: unknown.
        takes: those of "charge" and "spin" that the function uses.

    Raises:
        ValueError: from `check`, for an element that it does not know, for a charge or spin that it does not
            use, and for a function of 64 bits where JAX has 32.
    """

    parameters: tuple[Array, ...] = eqx.field(repr=False)
    function: "SavedFunction" = eqx.field(static=True)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    elements: tuple[int, ...] | None = eqx.field(static=True, default=None)
    takes: tuple[str, ...] = eqx.field(static=True, default=())
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=1.0)

    @classmethod
    def read(cls, path: str | os.PathLike, skin: float = 1.0) -> "ExportedModel":
        """Reads an archive of three files; or a file of `jax.export`, with the metadata beside it in a file
        of the same name that ends in .json.

        Raises:
            ValueError: naming the file, and what is missing or wrong in it.
            ImportError: if flatbuffers is missing, which `jax.export` needs.
        """
        path = Path(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                missing = [name for name in (MODEL, METADATA) if name not in names]
                if missing:
                    raise ValueError(
                        f"{path} has no {' and no '.join(missing)}; it has {', '.join(names[:9])}."
                    )
                data, meta = archive.read(MODEL), archive.read(METADATA)
                packed = archive.read(PARAMETERS) if PARAMETERS in names else b""
        else:
            beside = path.with_suffix(".json")
            if not beside.exists():
                raise ValueError(f"{path} needs its metadata in {beside}, a JSON file with the cutoff in Å.")
            data, meta, packed = path.read_bytes(), beside.read_bytes(), b""
        cutoff, elements, takes = _metadata(path, meta)
        parameters = tuple(jnp.asarray(a) for a in _unpack(path, packed)) if packed else ()
        return cls(
            parameters=parameters,
            function=SavedFunction(path, data),
            cutoff=cutoff,
            elements=elements,
            takes=takes,
            skin=skin,
        )

    @property
    def requirements(self) -> Requirements:
        """Edges within the cutoff."""
        return Requirements(self.cutoff, self.skin, edges=True)

    def energy(self, batch: Batch, neighbors: NeighborList | None) -> Float[Array, " systems"]:
        edges = need_edges(self, neighbors)
        inputs = _inputs(batch, edges, self.cutoff, self.takes)
        energies = self.function(self.parameters, inputs, batch.system_capacity + 1)
        lost = jnp.where(edges.overflow, jnp.nan, 0).astype(batch.dtype)
        return energies[:-1].astype(batch.dtype) + lost

    def check(self, batch: Batch) -> None:
        wide = [aval.dtype for aval in self.function.exported.in_avals if aval.dtype.itemsize == 8]
        if wide and not jax.config.jax_enable_x64:  # pyright: ignore
            raise ValueError(
                f"{self.function.name} was exported with {wide[0]}, and jax_enable_x64 is off here: switch "
                "it on (dtype float64 on the command line), or export the function with float32."
            )
        if self.elements is not None:
            check_elements(self, batch, "parameters", self.elements)
        for name, usual in _OPTIONAL.items():
            values = np.asarray(getattr(batch, name))[: batch.num_systems]
            odd = np.flatnonzero(values != usual)
            if name not in self.takes and odd.size:
                raise ValueError(
                    f"{batch.name_of(int(odd[0]))} has {name} {values[odd[0]]:g}, which {self.function.name} "
                    "does not use: its metadata name it in `takes` if it does."
                )


class SavedFunction:
    """What `jax.export` has serialized. Equal if the bytes are.

    Args:
        path: of the file, for messages. data: its bytes.

    Raises:
        ValueError: naming the file, if it holds no such function, one without derivatives, or one for other
            devices.
        ImportError: if flatbuffers is missing.
    """

    def __init__(self, path: Path, data: bytes):
        from jax import export

        self.name, self.data = path.name, data
        try:
            self.exported = export.deserialize(bytearray(data))
        except ModuleNotFoundError as e:
            raise ImportError(f"{path} needs {e.name}: pip install flatbuffers") from None
        except Exception as e:
            text = " ".join(str(e).split())[:200]
            raise ValueError(f"{path} holds no function that this jax can read: {text}") from None
        try:
            self.exported.vjp()
        except ValueError:
            raise ValueError(
                f"{path} has no derivatives, so there are no forces: write it with serialize(vjp_order=1)."
            ) from None
        here = jax.default_backend()
        here = {"gpu": "cuda"}.get(here, here)
        if here not in self.exported.platforms:
            raise ValueError(f"{path} was exported for {', '.join(self.exported.platforms)}, not for {here}.")
        if len(self.exported.out_avals) != 1:
            raise ValueError(
                f"{path} returns {len(self.exported.out_avals)} arrays; it must return energies."
            )

    def __call__(
        self, parameters: Sequence[Array], inputs: dict[str, Array], systems: int
    ) -> Float[Array, " systems"]:
        leaves = self._leaves(list(parameters), inputs)
        floats = [a for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]
        rest = [a for a in leaves if not jnp.issubdtype(a.dtype, jnp.floating)]
        energies: Any = _call(self, floats, rest)
        if energies.shape == (systems, 1):
            energies = energies[:, 0]
        if energies.shape != (systems,):
            raise ValueError(
                f"{self.name} returned an array of shape {energies.shape}; it must be ({systems},), energies."
            )
        return energies

    def _leaves(self, parameters: list[Array], inputs: dict[str, Array]) -> list[Array]:
        """Arguments in the order of the function, in its dtypes."""
        tree = self.exported.in_tree
        for arguments in (((parameters, inputs), {}), ((inputs,), {})):
            leaves, found = jax.tree.flatten(arguments)
            if found == tree:
                avals = self.exported.in_avals
                return [jnp.asarray(a).astype(v.dtype) for a, v in zip(leaves, avals, strict=True)]
        raise ValueError(
            f"{self.name} takes {tree}; it must take {len(parameters)} parameters in a list, and a dict of "
            f"{', '.join(_INPUTS)}."
        )

    def call(self, floats: list[Array], rest: list[Array]) -> Array:
        """The function, of its arguments that are floats and of those that are not."""
        first, second = iter(floats), iter(rest)
        leaves = [
            next(first) if jnp.issubdtype(aval.dtype, jnp.floating) else next(second)
            for aval in self.exported.in_avals
        ]
        arguments, _ = jax.tree.unflatten(self.exported.in_tree, leaves)
        (energies,) = jax.tree.leaves(self.exported.call(*arguments))
        return energies

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedFunction) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return self.name


# Saved functions have no rule for vmap: its lanes are computed one after another, derivatives too.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(function: SavedFunction, floats: list[Array], rest: list[Array]) -> Array:
    return sequential_vmap(function.call)(floats, rest)


def _forward(function: SavedFunction, floats: list[Array], rest: list[Array]) -> tuple[Array, tuple]:
    return _call(function, floats, rest), (floats, rest)


def _backward(function: SavedFunction, saved: tuple, slope: Array) -> tuple:
    def pull(floats: list[Array], rest: list[Array], slope: Array) -> list[Array]:
        return jax.vjp(lambda f: function.call(f, rest), floats)[1](slope)[0]

    return sequential_vmap(pull)(*saved, slope), None


_call.defvjp(_forward, _backward)


def _inputs(batch: Batch, edges: EdgeList, cutoff: float, takes: Sequence[str]) -> dict[str, Array]:
    """What the function is called with, see `ExportedModel`."""
    systems, dtype = batch.system_capacity, batch.dtype
    # A list that is shared with another model may reach farther.
    edges = edges_within(batch, edges, cutoff)
    beyond = jnp.asarray([1, 0, 0], edges.shifts.dtype)

    def add(values: Any, last: Any) -> Array:
        return jnp.concatenate([values, jnp.asarray(last, values.dtype)[None]])

    def optional(name: str) -> Array:
        given = getattr(batch, name) if name in takes else jnp.zeros(systems, dtype)
        return add(given, 0)

    return {
        "pos": add(batch.positions, np.zeros(3)),
        "atomic_numbers": add(batch.numbers, 0),
        "batch": add(batch.batch_idx, systems),
        # In padding an edge is three cutoffs long: the shift by one vector of this cell.
        "cell": add(batch.cell, 3 * cutoff * np.eye(3)),
        "pbc": add(batch.pbc, np.ones(3, bool)),
        # In padding both ends are the last atom.
        "edge_index": jnp.stack([edges.receivers, edges.senders]),
        "cell_offsets": jnp.where(edges.mask[:, None], edges.shifts, beyond[None]),
        "charge": optional("charge"),
        "spin": optional("spin"),
    }


# -- files ---------------------------------------------------------------------------------------------


def save_exported(
    path: str | os.PathLike,
    function: Callable[[list[Array], dict[str, Array]], Float[Array, " systems"]],
    parameters: Sequence[Any],
    cutoff: float,
    *,
    elements: Sequence[str | int] | None = None,
    takes: Sequence[str] = (),
    dtype: Any = "float32",
    platforms: Sequence[str] | None = None,
) -> None:
    """Writes a potential as an archive that `ExportedModel.read` and kUPS read.

    Args:
        path: path of the file, .zip.
        function: `function(parameters, inputs)`, the energy of each system, see `ExportedModel`; traced with
            symbolic numbers of atoms, systems and edges.
        parameters: arrays.
        cutoff: Å.
        elements: symbols or atomic numbers that it knows. takes: those of "charge" and "spin" that it uses.
        dtype: dtype of the floats. platforms: such as ("cpu", "cuda"); by default that of this process.

    Raises:
        ValueError: for another name in `takes`.
        ImportError: if flatbuffers is missing.
    """
    import msgpack
    from jax import export

    odd = [name for name in takes if name not in _OPTIONAL]
    if odd:
        raise ValueError(f"takes can have {', '.join(_OPTIONAL)}, not {odd[0]!r}.")
    arrays = [np.asarray(a) for a in parameters]
    atoms, systems, edges = export.symbolic_shape("atoms, systems, edges")

    def shape(dims: tuple, kind: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.dtype(kind))

    inputs = {
        "pos": shape((atoms, 3)),
        "atomic_numbers": shape((atoms,), "int32"),
        "batch": shape((atoms,), "int32"),
        "cell": shape((systems, 3, 3)),
        "pbc": shape((systems, 3), bool),
        "edge_index": shape((2, edges), "int32"),
        "cell_offsets": shape((edges, 3)),
        "charge": shape((systems,)),
        "spin": shape((systems,)),
    }
    specs = [shape(a.shape, a.dtype) for a in arrays]
    made = export.export(jax.jit(function), platforms=platforms)(specs, inputs)
    try:
        data = made.serialize(vjp_order=1)
    except ModuleNotFoundError as e:
        raise ImportError(f"saving needs {e.name}: pip install flatbuffers") from None
    numbers = None if elements is None else [atomic_number(e) for e in elements]
    meta = {"cutoff": float(cutoff), "elements": numbers, "takes": list(takes)}
    packed = [
        {"__np__": True, "shape": list(a.shape), "dtype": a.dtype.str, "data": a.tobytes()} for a in arrays
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MODEL, bytes(data))
        archive.writestr(METADATA, json.dumps(meta))
        archive.writestr(PARAMETERS, msgpack.packb(packed) or b"")


def _metadata(path: Path, text: bytes) -> tuple[float, tuple[int, ...] | None, tuple[str, ...]]:
    try:
        meta = json.loads(text)
        cutoff, known, takes = float(meta["cutoff"]), meta.get("elements"), tuple(meta.get("takes") or ())
        elements = None if known is None else tuple(sorted(atomic_number(e) for e in known))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"the metadata of {path} must be JSON with cutoff, a number in Å, and may have elements and "
            f"takes: {type(e).__name__} {e}."
        ) from None
    odd = [name for name in takes if name not in _OPTIONAL]
    if odd:
        raise ValueError(f"takes in the metadata of {path} can have {', '.join(_OPTIONAL)}, not {odd[0]!r}.")
    return cutoff, elements, takes


def _unpack(path: Path, packed: bytes) -> list[np.ndarray]:
    """Arrays from msgpack, each a map of shape, dtype and data."""
    import msgpack

    try:
        found: Any = msgpack.unpack(io.BytesIO(packed), raw=False)
        return [np.frombuffer(a["data"], np.dtype(a["dtype"])).reshape(a["shape"]) for a in found]
    except Exception as e:
        raise ValueError(f"{PARAMETERS} of {path} holds no list of arrays: {type(e).__name__} {e}.") from None


__all__ = ["ExportedModel", "SavedFunction", "save_exported"]
