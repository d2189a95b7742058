"""Checkpoints: the state of a run on disk, from which another process continues.

The arrays of the state are written by orbax to a temporary folder, which is then renamed, so that a
checkpoint is complete or does not exist. Models, hooks and names are not stored: they come from the engine
and the batch with which the run began.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.neighbors import ListSizes


_SIZES = "list sizes"


def save(path: str | os.PathLike, state: DynamicsState, *, overwrite: bool = False) -> None:
    """Write the state of a run.

    Raises:
        FileExistsError: if the path exists and `overwrite` is not set.
    """
    path = Path(path).absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another path, or overwrite=True.")
    # Of an empty array there is nothing to write, and orbax refuses it.
    tree = {name: np.asarray(_plain(leaf)) for name, leaf in _leaves(state) if leaf.size}
    if state.neighbors is not None:
        tree[_SIZES] = np.array(dataclasses.astuple(state.neighbors.sizes))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree, force=overwrite)


def load(path: str | os.PathLike, like: DynamicsState) -> DynamicsState:
    """The state that was written.

    Args:
        like: a state of the same engine and batch, `engine.init(batch)`, for the structure.

    Raises:
        ValueError: if engine or batch differ, naming the first difference.
        FileNotFoundError: if there is no checkpoint.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    with ocp.StandardCheckpointer() as checkpointer:
        tree: dict[str, Any] = dict(checkpointer.restore(path))
    sizes = tree.pop(_SIZES, None)
    if sizes is not None and like.neighbors is not None:
        # Lists may have grown since `init`, so their sizes are stored.
        stored = ListSizes(*(int(n) for n in sizes))
        like = like.replace(neighbors=dataclasses.replace(like.neighbors, sizes=stored))
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
        free = name.startswith((".neighbors", ".records"))
        if value.dtype != wanted.dtype or (value.shape != wanted.shape and not free):
            raise ValueError(
                f"{path} is of another engine or batch: {name} is {value.dtype}{list(value.shape)}, "
                f"expected {wanted.dtype}{list(wanted.shape)}."
            )
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = jnp.asarray(value)
        kind = jax.random.key_impl(leaf) if is_key else None
        leaves.append(jax.random.wrap_key_data(array, impl=kind) if is_key else array)
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return state.replace(batch=state.batch.with_meta(like.batch.meta))


def _leaves(state: DynamicsState) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
