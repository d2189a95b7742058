"""Whether two folders of results hold the same, bit for bit, whatever was killed on the way."""

import csv
from pathlib import Path

import numpy as np

from alchemi_jax.io.trajectory import Trajectory


def same_folders(a: Path, b: Path, order: bool = True) -> None:
    """Stores, logs and structures of two folders are the same.

    Args:
        order: also the order in which systems finish, and rows and frames follow one another. Without, each
        system
            is compared for itself.
    """
    made = [sorted(p.name for p in folder.iterdir()) for folder in (a, b)]
    assert made[0] == made[1]
    for path in sorted(a.glob("*.zarr")):
        same_stores(path, b / path.name, order)
    same_logs(a / "log.csv", b / "log.csv", order)
    for path in a.glob("*.extxyz"):
        assert path.read_bytes() == (b / path.name).read_bytes(), path


def same_stores(a: Path, b: Path, order: bool = True, but: tuple[str, ...] = ()) -> None:
    """Two stores hold the same systems in the same frames, apart from some fields."""
    found = [Trajectory(path) for path in (a, b)]
    assert found[0].fields == found[1].fields
    assert found[0].n_rows == found[1].n_rows, (a, [t.n_rows for t in found])
    assert not order or found[0].n_frames == found[1].n_frames
    rows = [np.arange(t.n_rows) for t in found]
    if not order:
        rows = [np.lexsort((t["steps_taken"][:], t["system_id"][:])) for t in found]
    hosts = [t._stored.batch(r) for t, r in zip(found, rows, strict=True)]
    for name in found[0].fields:
        if "extra" not in name and name not in but:
            x, y = (np.asarray(getattr(host, name)) for host in hosts)
            np.testing.assert_array_equal(x, y, err_msg=f"{name} of {a}")
    for x, y in zip(hosts[0].meta, hosts[1].meta, strict=True):
        assert (x.name, x.info, x.reason) == (y.name, y.info, y.reason)


def same_logs(a: Path, b: Path, order: bool = True, but: tuple[str, ...] = ()) -> None:
    """Two logs have the same rows, apart from some columns."""
    found = []
    for path in (a, b):
        with open(path) as file:
            columns, *rows = list(csv.reader(file))
        if not order:
            i, step = columns.index("system_id"), columns.index("step")
            rows.sort(key=lambda row: (int(row[i]), int(row[step])))
        kept = [k for k, name in enumerate(columns) if name not in but]
        found.append((columns, [[row[k] for k in kept] for row in rows]))
    assert found[0] == found[1]
