"""Checkpoints: the state of a run on disk, from which another process continues.

The arrays of the state are written by orbax to a temporary folder beside the path, which then takes its place
by renaming, so that a checkpoint is complete or does not exist. Models, hooks and names are not stored: they
come from the engine and the batch with which the run began. What identifies engine and model is stored, so
that another one is refused.
"""

import dataclasses
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ase.data import chemical_symbols

from alchemi_jax.dynamics.origin import difference
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.neighbors import ListSizes


_SIZES, _ABOUT = "list sizes", "about"
#: Fields of the batch that no run changes.
_OF_SYSTEMS = ("atoms_per_system", "numbers", "masses", "pbc", "charge", "spin", "system_id")
#: What orbax writes into the folder of a checkpoint.
_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


def save(path: str | os.PathLike, state: DynamicsState, *, overwrite: bool = False) -> None:
    """Write the state of a run.

    Raises:
        FileExistsError: if the path exists and `overwrite` is not set, or what is there is no checkpoint.
        OSError: naming the path, if it cannot be written; a checkpoint that is there stays.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another path, or overwrite=True.")
    if path.exists() and not (path.is_dir() and any((path / mark).exists() for mark in _MARKS)):
        raise FileExistsError(f"{path} exists and is no checkpoint, so it is not overwritten.")
    # Of an empty array there is nothing to write, and orbax refuses it.
    leaves = _leaves(state)
    tree = {name: np.asarray(_plain(leaf)) for name, leaf in leaves if leaf.size}
    if state.neighbors is not None:
        tree[_SIZES] = np.array(dataclasses.astuple(state.neighbors.sizes))
    keys = {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves if _is_key(leaf)}
    about = {**state.origin.describe(), "keys": keys}
    tree[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    work = None
    try:
        # Before orbax starts: where it cannot make its folder its threads never end.
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(work / "new", tree)
        _put(work, path)
    except (OSError, ValueError) as e:
        # The library that writes the arrays reports a full disk by a ValueError.
        reason = getattr(e, "strerror", None) or str(e).split("\n")[0][:300]
        raise OSError(
            getattr(e, "errno", None) or 0, f"no checkpoint was written: {reason}", str(path)
        ) from e
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, path: Path) -> None:
    """Put the new folder in the place of the path."""
    if path.exists():
        os.rename(path, work / "old")
    try:
        os.rename(work / "new", path)
    except OSError:
        if (work / "old").exists():
            os.rename(work / "old", path)
        raise


def load(path: str | os.PathLike, like: DynamicsState) -> DynamicsState:
    """The state that was written.

    Args:
        like: a state of the same engine and batch, `engine.init(batch)`, for the structure. A parameter of
            the engine may differ, with a warning; hooks may, if their memories have the same structure.

    Raises:
        ValueError: if engine, model or batch differ, naming the first difference; if it is no checkpoint.
        FileNotFoundError: if there is no checkpoint.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    tree = _read(path)
    sizes, about = tree.pop(_SIZES, None), tree.pop(_ABOUT, None)
    about = {} if about is None else json.loads(np.asarray(about).tobytes().decode())
    keys = about.pop("keys", {})
    other, changed = difference(about, like.origin.describe())
    if other:
        raise ValueError(f"{path} is of another engine or batch: {other}.")
    if sizes is not None and like.neighbors is not None:
        # Lists may have grown since `init`, so their sizes are stored.
        stored = ListSizes(*(int(n) for n in sizes))
        like = like.replace(neighbors=dataclasses.replace(like.neighbors, sizes=stored))
    _check_systems(path, tree, like)
    named = _leaves(like)
    empty = {name for name, leaf in named if not leaf.size} - set(tree)
    odd = sorted(set(tree) ^ {name for name, _ in named if name not in empty})
    if odd:
        raise ValueError(f"{path} is of another engine or batch: they differ in {odd[0]}.")
    leaves = []
    for name, leaf in named:
        if name in empty:
            leaves.append(leaf)
            continue
        value = np.asarray(tree[name])
        wanted = np.asarray(_plain(leaf))
        free = name.startswith((".neighbors", ".records")) or name in keys
        if value.dtype != wanted.dtype or (value.shape != wanted.shape and not free):
            raise ValueError(
                f"{path} is of another engine or batch: {name} is {value.dtype}{list(value.shape)}, "
                f"expected {wanted.dtype}{list(wanted.shape)}."
            )
        array = jnp.asarray(value)
        if _is_key(leaf):
            # A key goes on with the generator that it was made for.
            kind = keys.get(name, jax.random.key_impl(leaf))
            array = jax.random.wrap_key_data(array, impl=kind)
        leaves.append(array)
    if changed:
        warnings.warn(f"{path} was written with another parameter: {changed}.", RuntimeWarning, stacklevel=2)
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state.replace(batch=state.batch.with_meta(like.batch.meta), origin=like.origin)


def _read(path: Path) -> dict[str, Any]:
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return dict(checkpointer.restore(path))
    except Exception as e:
        # The libraries below raise errors of all types.
        reason = str(e).strip().split("\n")[0][:300]
        raise ValueError(f"{path} is no checkpoint, or it is damaged: {type(e).__name__}: {reason}") from e


def _check_systems(path: Path, tree: dict[str, Any], like: DynamicsState) -> None:
    """Check that the systems are the same, where the arrays have the same shapes.

    Raises:
        ValueError: naming the field, and the first element that differs.
    """
    name, now = ".batch.atoms_per_system", np.asarray(like.batch.atoms_per_system)
    counts = [int((values > 0).sum()) for values in (np.asarray(tree.get(name, now)), now)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{path} is of another engine or batch: it has {counts[0]} systems, `like` has {counts[1]}."
        )
    for field in _OF_SYSTEMS:
        name, now = f".batch.{field}", np.asarray(getattr(like.batch, field))
        old = np.asarray(tree[name]) if name in tree else now
        if old.shape != now.shape or np.array_equal(old, now):
            continue
        row = int(np.argwhere(old != now)[0][0])
        if field == "numbers":
            before, after = (chemical_symbols[values[row]] for values in (old, now))
            raise ValueError(f"{path} is of another engine or batch: atom {row} was {before} and is {after}.")
        raise ValueError(
            f"{path} is of another engine or batch: {field} of row {row} was {old[row].tolist()} and is "
            f"{now[row].tolist()}."
        )


def _leaves(state: DynamicsState) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


__all__ = ["load", "save"]
