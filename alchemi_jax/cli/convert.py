"""`alchemi-jax convert`: a trajectory in a format of other programs."""

import argparse
import contextlib
import os
from pathlib import Path

from ase.io.formats import ioformats
from tqdm import tqdm

from alchemi_jax.cli.outcome import OK, UsageError
from alchemi_jax.cli.read import open_trajectory
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, Sink
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.io.write import WriteError, format_of_name, write_structures


def convert(args: argparse.Namespace) -> int:
    """Writes the file under another name, then gives it its own: it is whole or not there.

    Raises:
        UsageError: if something about the input, the format or the path is wrong.
    """
    trajectory, out = open_trajectory(args.trajectory), Path(args.out)
    frames = _frames(args.frames, trajectory)
    try:
        format = format_of_name(out)
    except WriteError as e:
        raise UsageError(str(e)) from None
    rows = sum(len(trajectory.rows(i)) for i in frames)
    if ioformats[format].single and rows > 1:
        raise UsageError(
            f"{out}: a file of format {format} holds one structure, and there are {rows}; choose another "
            "format, extxyz for example."
        )
    if out.exists() and not args.overwrite:
        raise UsageError(f"{out} exists: give another file, or --overwrite to replace it.")
    if out.is_dir():
        raise UsageError(f"{out} is a folder.")
    part = out.with_name(f".part-{out.name}")
    try:
        part.unlink(missing_ok=True)
        remarks = _write(trajectory, frames, part, format)
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


def _write(trajectory: Trajectory, frames: range, part: Path, format: str) -> list[str]:
    """Frame by frame where the format can go on; ASE's writers of others want all at once.

    Returns sentences on what the format does not hold.
    """
    kinds: dict[str, type[ExtXYZ] | type[AseTrajectory]] = {"extxyz": ExtXYZ, "traj": AseTrajectory}
    if format in kinds and part.suffix not in (".gz", ".bz2", ".xz"):
        sink: Sink = kinds[format](part, mode="x")
        sink.open()
        try:
            for i in tqdm(frames, unit="frame", dynamic_ncols=True, delay=1):
                sink.write(trajectory.to_batch(i))
        finally:
            sink.close()
        return []
    try:
        return write_structures(part, map(trajectory.to_batch, frames), format)
    except WriteError as e:
        raise UsageError(str(e)) from None


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
