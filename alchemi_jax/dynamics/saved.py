"""A state as arrays with names and a description in JSON, and back: what checkpoints consist of.

Of a neighbor list the references are kept, from which the next step builds it again, bit for bit; of record
buffers only rows that were not fetched. All else is an array of the state, under the name of its path.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.start import initial_state
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.hooks import records
from alchemi_jax.neighbors import ListSizes
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import level_fields, unsafe_replace


#: Of the form of a checkpoint; others are refused.
FORMAT = 5
#: What is kept of a neighbor list.
_REFERENCES = ("ref_positions", "ref_cell", "ref_inverse", "ref_pbc", "ref_id", "builds")
#: Fields of the batch that no run changes.
_OF_SYSTEMS = ("atoms_per_system", "numbers", "masses", "pbc", "charge", "spin", "system_id")

Arrays = dict[str, np.ndarray]


class AnotherRun(ValueError):
    """A checkpoint of another engine, model, batch or version; the message says what differs."""


# -- a state as arrays -----------------------------------------------------------------------------


def pack_state(state: DynamicsState) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of a state, on the host, and its description without the origin."""
    lists, waiting = state.neighbors, [int(buffer.count) for buffer in state.records]
    slim = unsafe_replace(state, neighbors=None, records=state.records if any(waiting) else ())
    leaves = dict(named_leaves(slim))
    if lists is not None:
        leaves |= {f".neighbors.{name}": getattr(lists, name) for name in _REFERENCES}
        # It is built once more when the run goes on.
        leaves[".neighbors.builds"] = lists.builds - lists.built.astype(jnp.int32)
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if is_key(leaf)}
    # Of an empty array there is nothing to write, and orbax refuses it.
    arrays = jax.device_get({name: plain(leaf) for name, leaf in leaves.items() if leaf.size})
    about = {
        "keys": keys,
        "batch": batch_format(state.batch),
        "list": None if lists is None else dataclasses.asdict(lists.sizes),
        "records": [buffer.capacity for buffer in slim.records],
    }
    return {name: np.asarray(x) for name, x in arrays.items()}, about


def unpack_state(where: str, arrays: Arrays, about: dict[str, Any], like: DynamicsState) -> DynamicsState:
    """The state that was packed.

    Args:
        where: the checkpoint, for messages.
        like: a state of the same engine, hooks and capacities; of its leaves only shapes and dtypes are read.

    Raises:
        AnotherRun: naming the first field that differs.
    """
    _check_format(where, about["batch"], batch_format(like.batch))
    lists, sizes = like.neighbors, about["list"]
    if (lists is None) != (sizes is None):
        raise AnotherRun(f"{where} is of another model: only one of them has a neighbor list.")
    stored = tuple(
        _room_for(buffer, capacity)
        for buffer, capacity in zip(like.records, about["records"], strict=False)
        if about["records"]
    )
    slim = unsafe_replace(like, neighbors=None, records=stored)
    named = named_leaves(slim)
    wanted = {name for name, leaf in named if leaf.size}
    if lists is not None:
        wanted |= {f".neighbors.{name}" for name in _REFERENCES if getattr(lists, name).size}
    odd = sorted(set(arrays) ^ wanted)
    if odd:
        raise AnotherRun(f"{where} is of another engine, batch or hooks: they differ in {odd[0]}.")
    new = [_checked(where, arrays, name, leaf, about["keys"]) for name, leaf in named]
    state = jax.tree.unflatten(jax.tree.structure(slim), new)
    if lists is not None:
        references = {
            name: _checked(where, arrays, f".neighbors.{name}", getattr(lists, name), {})
            for name in _REFERENCES
        }
        lists = nl.resized(unsafe_replace(lists, **references), ListSizes(**sizes))
    if not stored:
        state = unsafe_replace(state, records=tuple(_empty(buffer) for buffer in like.records))
    return unsafe_replace(state, neighbors=lists)


def _checked(where: str, arrays: Arrays, name: str, leaf: Any, keys: dict[str, str]) -> Any:
    """The array of a leaf, on the device."""
    if not leaf.size:
        return leaf if isinstance(leaf, jax.Array) else jnp.zeros(leaf.shape, leaf.dtype)
    value = arrays[name]
    if name in keys:
        # A key goes on with the generator that it was made for.
        if not is_key(leaf):
            raise AnotherRun(f"{where} is of another engine, batch or hooks: {name} is a key there.")
        return jax.random.wrap_key_data(jnp.asarray(value), impl=keys[name])
    if is_key(leaf) or value.dtype != leaf.dtype or value.shape != tuple(leaf.shape):
        raise AnotherRun(
            f"{where} is of another engine, batch or hooks: {name} is {value.dtype}{list(value.shape)}, "
            f"expected {leaf.dtype}{list(leaf.shape)}."
        )
    return jnp.asarray(value)


def _empty(buffer: records.RecordBuffer) -> records.RecordBuffer:
    words = jnp.zeros(buffer.words.shape, buffer.words.dtype)
    return unsafe_replace(buffer, words=words, count=jnp.zeros((), jnp.int32))


def _room_for(buffer: records.RecordBuffer, capacity: int) -> Any:
    """The shapes of a buffer of this capacity."""
    shape = (capacity, *buffer.words.shape[1:])
    return unsafe_replace(buffer, words=jax.ShapeDtypeStruct(shape, buffer.words.dtype))


def named_leaves(state: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, in order."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def same_key(a: Any, b: Any) -> bool:
    """Whether two keys are of one generator and equal."""
    if jax.random.key_impl(a) != jax.random.key_impl(b):
        return False
    return np.array_equal(jax.random.key_data(a), jax.random.key_data(b))


def key_parts(key: Any) -> tuple[str, np.ndarray]:
    """Generator and data of a key, which can be written; `join_key` makes the key again."""
    return str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key))


def join_key(parts: Any) -> Any:
    """The key of `key_parts`."""
    impl, data = parts
    return jax.random.wrap_key_data(jnp.asarray(data), impl=impl)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of PRNG keys."""
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def plain(leaf: Any) -> Any:
    """A leaf as an array that numpy has."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


# -- the format of a batch -------------------------------------------------------------------------


def batch_format(batch: Batch) -> dict[str, Any]:
    """Capacities, dtype and extras of a batch, as JSON has it."""
    extras = {
        name: {
            k: [np.dtype(x.dtype).name, list(x.shape[1:])] for k, x in sorted(getattr(batch, name).items())
        }
        for name in ("atom_extras", "system_extras")
    }
    return {
        "systems": batch.system_capacity,
        "atoms": batch.atom_capacity,
        "largest": batch.largest,
        "dtype": batch.dtype.name,
        **extras,
    }


def _check_format(where: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that a state fits into a batch of another format.

    Raises:
        AnotherRun: naming what differs.
    """
    if found["dtype"] != wanted["dtype"]:
        raise AnotherRun(f"{where} is in {found['dtype']}, the batch in {wanted['dtype']}.")
    for name in ("atom_extras", "system_extras"):
        odd = [k for k in {**found[name], **wanted[name]} if found[name].get(k) != wanted[name].get(k)]
        if odd:
            raise AnotherRun(f"{where} is of another batch: they differ in the extra {odd[0]!r}.")
    odd = [k for k in ("systems", "atoms", "largest") if found[k] != wanted[k]]
    if odd:
        what = {"systems": "places for systems", "atoms": "places for atoms"}.get(odd[0], "largest")
        raise AnotherRun(
            f"{where} is of a batch with {found[odd[0]]} {what}, this one has {wanted[odd[0]]}: give the "
            "same capacities."
        )


def check_same_systems(where: str, arrays: Arrays, batch: Batch, prefix: str = "") -> None:
    """Check that a packed state is of the systems of a batch.

    Raises:
        AnotherRun: naming the field, and the first element that differs.
    """
    found = arrays.get(f"{prefix}.batch.positions", batch.positions)
    if found.dtype != batch.dtype:
        raise AnotherRun(f"{where} is in {found.dtype}, the batch in {batch.dtype}.")
    name, now = f"{prefix}.batch.atoms_per_system", np.asarray(batch.atoms_per_system)
    counts = [int((values > 0).sum()) for values in (arrays.get(name, now), now)]
    if counts[0] != counts[1]:
        raise AnotherRun(f"{where} is of another batch: it has {counts[0]} systems, this one {counts[1]}.")
    for field in _OF_SYSTEMS:
        name, now = f"{prefix}.batch.{field}", np.asarray(getattr(batch, field))
        old = arrays.get(name, now)
        if old.shape != now.shape or np.array_equal(old, now):
            continue
        row = int(np.argwhere(old != now)[0][0])
        if field == "numbers":
            before, after = (chemical_symbols[values[row]] for values in (old, now))
            raise AnotherRun(f"{where} is of another batch: atom {row} was {before} and is {after}.")
        raise AnotherRun(
            f"{where} is of another batch: {field} of row {row} was {old[row].tolist()} and is "
            f"{now[row].tolist()}."
        )


# -- a state to fill -------------------------------------------------------------------------------


def state_like(engine: Engine, about: dict[str, Any]) -> DynamicsState:
    """The shapes of a state of an engine, for a batch of the format that a checkpoint has."""
    batch, device, required = _batch_like(about["batch"]), engine.on_device(), engine.model.requirements

    def make(batch: Batch) -> DynamicsState:
        state, neighbors = initial_state(device, batch, None, jax.random.key(0)), None
        if required.cutoff is not None and about["list"] is not None:
            sizes = ListSizes(**about["list"])
            neighbors = nl.empty_list(batch, required.cutoff, required.skin, sizes, required)
        return state.replace(neighbors=neighbors)

    return jax.eval_shape(make, batch)


def _batch_like(format: dict[str, Any]) -> Batch:
    """The shapes of a batch."""
    one = Batch.from_data_list([AtomicData(positions=np.zeros((1, 3)), numbers=[1])], dtype=format["dtype"])
    rows = {"atom": format["atoms"], "system": format["systems"]}
    fields: dict[str, Any] = {}
    for name, level in level_fields(Batch):
        if name.endswith("_extras"):
            fields[name] = {
                k: jax.ShapeDtypeStruct((rows[level], *row), np.dtype(dtype))
                for k, (dtype, row) in format[name].items()
            }
        else:
            like = getattr(one, name)
            fields[name] = jax.ShapeDtypeStruct((rows[level], *like.shape[1:]), like.dtype)
    return unsafe_replace(one, **fields, largest=format["largest"])


# -- trees of JSON and arrays ----------------------------------------------------------------------

_ARRAY, _EMPTY, _BYTES = "__array__", "__empty__", "__bytes__"


def split_tree(tree: Any, prefix: str) -> tuple[Any, Arrays]:
    """A tree of what JSON has and of numpy arrays, as JSON in which names stand for the arrays, and these.

    Raises:
        TypeError: for anything else in the tree.
    """
    arrays: Arrays = {}

    def walk(x: Any) -> Any:
        if isinstance(x, np.ndarray | jax.Array):
            x = np.asarray(x)
            if not x.size:
                # Orbax refuses arrays without elements.
                return {_EMPTY: [x.dtype.str, *x.shape]}
            if x.dtype.hasobject or x.dtype.names:
                raise TypeError(f"an array of {x.dtype} cannot be in a checkpoint: give arrays of numbers.")
            name = f"{prefix}{len(arrays)}"
            if x.dtype.kind in "SUMm" or not x.dtype.isnative:
                # Of these orbax has no form.
                arrays[name] = np.frombuffer(x.tobytes(), np.uint8)
                return {_BYTES: [name, x.dtype.str, *x.shape]}
            arrays[name] = x
            return {_ARRAY: name}
        if isinstance(x, np.generic):
            return x.item()
        if x is None or isinstance(x, bool | int | float | str):
            return x
        if isinstance(x, dict) and all(isinstance(key, str) for key in x):
            return {key: walk(value) for key, value in x.items()}
        if isinstance(x, list | tuple):
            return [walk(value) for value in x]
        raise TypeError(
            f"a {type(x).__name__} cannot be in a checkpoint: state() gives dictionaries with keys of text, "
            "lists, texts, numbers and numpy arrays."
        )

    return walk(tree), arrays


def join_tree(tree: Any, arrays: Arrays) -> Any:
    """The inverse of `split_tree`; tuples are lists."""
    if isinstance(tree, dict):
        if set(tree) == {_ARRAY}:
            return arrays[tree[_ARRAY]]
        if set(tree) == {_EMPTY}:
            dtype, *shape = tree[_EMPTY]
            return np.zeros(shape, dtype)
        if set(tree) == {_BYTES}:
            name, dtype, *shape = tree[_BYTES]
            return np.frombuffer(np.asarray(arrays[name]).tobytes(), dtype).reshape(shape).copy()
        return {key: join_tree(value, arrays) for key, value in tree.items()}
    return [join_tree(value, arrays) for value in tree] if isinstance(tree, list) else tree


__all__ = [
    "FORMAT",
    "AnotherRun",
    "Arrays",
    "batch_format",
    "check_same_systems",
    "is_key",
    "join_key",
    "join_tree",
    "key_parts",
    "named_leaves",
    "pack_state",
    "plain",
    "same_key",
    "split_tree",
    "state_like",
    "unpack_state",
]
