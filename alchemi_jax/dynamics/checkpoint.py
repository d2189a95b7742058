"""Checkpoints: one state of a run on disk, from which another process continues.

The arrays of the state are written by orbax to a temporary folder beside the path, which then takes its
place, so that a checkpoint is complete or does not exist; a run that saves itself every so often does so by
`CheckpointHook`. Models, hooks and names are not stored: they
come from the engine and the batch with which the run began. What identifies engine and model is stored, so
that another one is refused.
"""

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from alchemi_jax.dynamics.checkpoint_files import this_process
from alchemi_jax.dynamics.checkpoints import not_written
from alchemi_jax.dynamics.origin import difference
from alchemi_jax.dynamics.saved import (
    FORMAT,
    AnotherRun,
    check_same_systems,
    pack_state,
    unpack_state,
)
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.io.replace import repair, replacing
from alchemi_jax.systems.levels import unsafe_replace


_ABOUT = "about"
#: What orbax writes into the folder of a checkpoint.
_MARKS = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


def save(path: str | os.PathLike, state: DynamicsState, *, overwrite: bool = False) -> None:
    """Write a state to a folder.

    Raises:
        FileExistsError: if the path exists and `overwrite` is not set, or if it is not a checkpoint.
        OSError: naming the path, if it cannot be written. An existing checkpoint is kept.
        ValueError: in a process other than the first.
    """
    if jax.process_index() > 0:
        raise ValueError(
            f"{path} is not written: of several processes only process 0 can save a state. A CheckpointHook, "
            "or run(..., resume=folder), saves those of all."
        )
    path = Path(path).absolute()
    try:
        repair(path)
    except (OSError, ValueError) as e:
        raise not_written(e, path) from e
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another path, or overwrite=True.")
    if path.exists() and not (path.is_dir() and any((path / mark).exists() for mark in _MARKS)):
        raise FileExistsError(f"{path} exists and is no checkpoint, so it is not overwritten.")
    tree, about = pack_state(state)
    about = {"format": FORMAT, "origin": state.origin.describe(), "state": about}
    tree[_ABOUT] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        with (
            replacing(path) as new,
            _checkpointer() as checkpointer,
        ):
            # Before orbax starts: where it cannot write, its threads never end.
            new.mkdir()
            new.rmdir()
            checkpointer.save(new, tree)
            checkpointer.wait_until_finished()
    except (OSError, ValueError) as e:
        # The library that writes the arrays reports a full disk by a ValueError.
        raise not_written(e, path) from e


def load(path: str | os.PathLike, like: DynamicsState) -> DynamicsState:
    """Read a state that `save` has written.

    Args:
        like: a state of the same engine and batch, `engine.init(batch)`, for the structure. A parameter of
            the engine may differ, with a warning; hooks may, if their memories have the same structure.

    Raises:
        ValueError: if engine, model or batch differ, naming the first difference; if the path is not a
            checkpoint.
        FileNotFoundError: if there is no checkpoint.
    """
    path = Path(path).absolute()
    with contextlib.suppress(OSError):
        # What a process left that was killed while it replaced this checkpoint.
        repair(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}.")
    tree = _read(path)
    about = json.loads(np.asarray(tree.pop(_ABOUT, np.frombuffer(b"{}", np.uint8))).tobytes().decode())
    if about.get("format") != FORMAT:
        raise AnotherRun(
            f"{path} was written by another version of alchemi_jax, which this one does not read."
        )
    other, changed = difference(about["origin"], like.origin.describe())
    if other:
        raise AnotherRun(f"{path} is of another engine or batch: {other}.")
    arrays = {name: np.asarray(value) for name, value in tree.items()}
    check_same_systems(str(path), arrays, like.batch)
    state = unpack_state(str(path), arrays, about["state"], like)
    if changed:
        warnings.warn(f"{path} was written with another parameter: {changed}.", RuntimeWarning, stacklevel=2)
    return unsafe_replace(state, batch=state.batch.with_meta(like.batch.meta), origin=like.origin)


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=this_process())


def _read(path: Path) -> dict[str, Any]:
    try:
        with _checkpointer() as checkpointer:
            return dict(checkpointer.restore(path))
    except Exception as e:
        # The libraries below raise errors of all types.
        reason = str(e).strip().split("\n")[0][:300]
        raise ValueError(f"{path} is no checkpoint, or it is damaged: {type(e).__name__}: {reason}") from e


__all__ = ["load", "save"]
