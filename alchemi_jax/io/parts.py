"""Files of several processes: what one process would write at a path, each of them writes beside it.

`traj.zarr` is `traj.0-of-2.zarr` and `traj.1-of-2.zarr`, a folder `checkpoints` is `checkpoints.0-of-2` and
so on. What lies inside of such a folder has the names that it has in one process.
"""

import os
import re
from pathlib import Path

from alchemi_jax.shared import world


_PART = re.compile(r"(?P<stem>.+)\.(?P<rank>\d+)-of-(?P<size>\d+)(?P<suffix>\.[^.]*)?")


def part_path(path: str | os.PathLike, rank: int, size: int) -> Path:
    """The part of a process: traj.zarr -> traj.0-of-2.zarr."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{rank}-of-{size}{path.suffix}")


def own_path(path: str | os.PathLike) -> Path:
    """Where this process writes: the path itself if there is one process, otherwise its part.

    Nothing is looked up: `check_parts` tells whether others have written there.
    """
    path, (rank, size) = Path(path), world()
    return path if size == 1 or _is_inside(path, rank, size) else part_path(path, rank, size)


def _is_inside(path: Path, rank: int, size: int) -> bool:
    """Whether a folder around it is a part of this process already."""
    found = [_PART.fullmatch(folder.name) for folder in path.parents]
    return any(m is not None and (int(m["rank"]), int(m["size"])) == (rank, size) for m in found)


def whole_name(name: str) -> str:
    """The name of which a name is a part; the name itself if it is no part."""
    found = _PART.fullmatch(name)
    return name if found is None else found["stem"] + (found["suffix"] or "")


def sizes_there(path: str | os.PathLike) -> set[int]:
    """The numbers of processes whose parts of a path are there."""
    return {size for _, size in _parts_there(Path(path))}


def _parts_there(path: Path) -> set[tuple[int, int]]:
    """Rank and number of processes of each part of a path that is there."""
    if not path.parent.is_dir():
        return set()
    # Most folders have no parts, and names that do not begin alike need no closer look.
    with os.scandir(path.parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(f"{path.stem}.")]
    found = (_PART.fullmatch(name) for name in names)
    return {
        (int(m["rank"]), int(m["size"]))
        for m in found
        if m is not None and m["stem"] == path.stem and (m["suffix"] or "") == path.suffix
    }


def parts_there(path: str | os.PathLike) -> list[Path]:
    """The parts of a path that are there, of whatever number of processes."""
    found = sorted(_parts_there(Path(path)))
    return [part_path(path, rank, size) for rank, size in found]


def part_paths(path: str | os.PathLike) -> list[Path]:
    """The files of a path: the path itself, or the parts that several processes have written.

        rows = pandas.concat(map(pandas.read_csv, part_paths("log.csv")))

    Returns:
        [path] if it exists or if there are no parts; otherwise the parts, in the order of the processes.

    Raises:
        ValueError: if a part is missing; if there are parts of different numbers of processes, or parts and
            the path itself.
    """
    path = Path(path)
    parts = _parts_there(path)
    if not parts:
        return [path]
    sizes = sorted({size for _, size in parts})
    if os.path.lexists(path):
        raise ValueError(
            f"{path} exists, and so do its parts of {sizes[0]} processes, such as "
            f"{part_path(path, min(parts)[0], min(parts)[1]).name}: move those away that do not count."
        )
    if len(sizes) > 1:
        raise ValueError(
            f"{path} has parts of {sizes[0]} and of {sizes[1]} processes: move those away that do not count."
        )
    size = sizes[0]
    missing = [rank for rank in range(size) if (rank, size) not in parts]
    if missing:
        raise ValueError(f"{part_path(path, missing[0], size)} is missing, one of {size} parts of {path}.")
    return [part_path(path, rank, size) for rank in range(size)]


def check_parts(path: str | os.PathLike) -> None:
    """Check that a path that is to be written was not written by another number of processes.

    Raises:
        ValueError: naming what is there.
    """
    path, size = Path(path), world().size
    if size > 1 and _is_inside(path, *world()):
        return
    others = sorted(sizes_there(path) - ({size} if size > 1 else set()))
    now = "1 process" if size == 1 else f"{size} processes"
    if others:
        was = f"{others[0]} process{'es' * (others[0] > 1)}"
        raise ValueError(
            f"{path} was written by {was}, as {part_path(path, 0, others[0]).name} and so on, and this run "
            f"has {now}: start {others[0]}, or give another path."
        )
    if size > 1 and os.path.lexists(path):
        raise ValueError(
            f"{path} was written by 1 process, and this run has {now}, which would write parts beside it: "
            "start one, or give another path."
        )


__all__ = ["check_parts", "own_path", "part_path", "part_paths", "parts_there", "sizes_there", "whole_name"]
