"""`alchemi-jax convert`: a trajectory in a format of other programs."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.io.formats import ioformats
from tqdm import tqdm

from alchemi_jax.cli.folder import check_target, find_store
from alchemi_jax.cli.outcome import OK, UsageError
from alchemi_jax.cli.read import open_trajectory
from alchemi_jax.cli.settings import Convert
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.write import part_of
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, Sink
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.io.write import WriteError, format_of_name, write_structures
from alchemi_jax.systems.host import HostBatch


def convert(args: Convert, signals: Signals | None = None) -> int:
    """Writes the file under another name, then gives it its own: it is whole or not there.

    Raises:
        UsageError: if something about the input, the format or the path is wrong.
    """
    trajectory, out = open_trajectory(str(find_store(args.trajectory))), Path(args.out)
    check_target(out, args.overwrite, args.trajectory)
    systems = None if args.system is None else _systems(args.system, trajectory)
    frames = _frames(args.frames, trajectory)
    try:
        format = format_of_name(out)
    except WriteError as e:
        raise UsageError(str(e)) from None
    if systems is not None:
        ids = trajectory["system_id"][:]
        frames = [i for i in frames if np.isin(ids[trajectory.rows(i)], systems).any()]
        rows = sum(int(np.isin(ids[trajectory.rows(i)], systems).sum()) for i in frames)
        if not rows:
            raise UsageError(f"--system {args.system} is in none of the frames {args.frames}.")
    else:
        rows = sum(len(trajectory.rows(i)) for i in frames)
    if ioformats[format].single and rows > 1:
        raise UsageError(
            f"{out}: a file of format {format} holds one structure, and there are {rows}; choose another "
            "format, extxyz for example."
        )
    part = part_of(out)
    if signals is not None:
        signals.on_leave(lambda: part.unlink(missing_ok=True))
    try:
        remarks = _write(trajectory, frames, systems, part, format)
        os.replace(part, out)
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror or e}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    print(f"{rows} structures of {len(frames)} frames written to {out}.")
    for remark in remarks:
        print(remark)
    return OK


def _write(
    trajectory: Trajectory, frames: Sequence[int], systems: np.ndarray | None, part: Path, format: str
) -> list[str]:
    """Frame by frame where the format can go on; ASE's writers of others want all at once.

    Returns sentences on what the format does not hold.
    """
    kinds: dict[str, type[ExtXYZ] | type[AseTrajectory]] = {"extxyz": ExtXYZ, "traj": AseTrajectory}
    if format in kinds and part.suffix not in (".gz", ".bz2", ".xz"):
        sink: Sink = kinds[format](part, mode="x")
        sink.open()
        try:
            for i in tqdm(frames, unit="frame", dynamic_ncols=True, delay=1):
                sink.write(_frame(trajectory, i, systems))
        finally:
            sink.close()
        return []
    try:
        return write_structures(part, (_frame(trajectory, i, systems) for i in frames), format)
    except WriteError as e:
        raise UsageError(str(e)) from None


def _frame(trajectory: Trajectory, i: int, systems: np.ndarray | None) -> HostBatch:
    host = trajectory.to_batch(i)
    return host if systems is None else host.take(np.isin(host.system_id, systems))


def _systems(text: str, trajectory: Trajectory) -> np.ndarray:
    """Ids from "3" or "0,4,7".

    Raises:
        UsageError: for what is no id, or none of this trajectory.
    """
    known = trajectory.system_ids.tolist()
    span = f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0])
    try:
        wanted = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--system {text!r} is neither an id nor a list of them, as in 0,4,7.") from None
    for i in wanted:
        if i not in known:
            raise UsageError(f"--system {i}: {trajectory.path} has the systems {span}.")
    return np.array(wanted)


def _frames(text: str, trajectory: Trajectory) -> range:
    n = trajectory.n_frames
    try:
        parts = [int(p) if p else None for p in text.split(":")]
        if len(parts) > 3 or (len(parts) == 3 and parts[2] == 0):
            raise ValueError
    except ValueError:
        raise UsageError(f"--frames {text!r} is neither a number nor first:last:step.") from None
    if len(parts) == 1:
        frame = parts[0]
        if frame is None or not -n <= frame < n:
            raise UsageError(f"--frames {text}: {trajectory.path} has {n} frames.")
        return range(frame % n, frame % n + 1)
    frames = range(n)[slice(*parts)]
    if not frames:
        raise UsageError(f"--frames {text} leaves none of the {n} frames of {trajectory.path}.")
    return frames
