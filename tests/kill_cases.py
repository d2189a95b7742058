"""Kills at every change of a file layer, each sweep without a backend of JAX: kill_cases.py FOLDER NAMES.

`test_kills.py` runs them. Each raises AssertionError with the change at which it went wrong.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from killing import copy_of, every_kill, every_moment

from alchemi_jax.dynamics.hooks.events import TensorBoardWriter
from alchemi_jax.dynamics.hooks.writers import CSVWriter
from alchemi_jax.io.sinks import AseTrajectory, ExtXYZ, ZarrData
from alchemi_jax.io.sinks.store import open_columns, put_attributes
from alchemi_jax.io.sinks.stored import attributes_of
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.host import HostBatch


def sweep_replace(folder: Path, there: bool = True) -> int:
    """A folder that takes the place of another, and the repair: one of the two is found."""
    from alchemi_jax.io.replace import repair, replacing

    path, others = folder / "a", {".new-a", ".old-a", ".a.replace", "a.new", ".a.abcdefgh"}

    def fill(path: Path, text: str) -> None:
        (path / "deep").mkdir(parents=True)
        for name in "xy":
            (path / "deep" / name).write_text(text)

    def put() -> None:
        with replacing(path) as new:
            fill(new, "new")

    def contents() -> str | None:
        names = {p.name for p in folder.iterdir()}
        assert sum(1 for p in folder.rglob("mine")) == len(others), "a file of others is gone"
        assert names - others <= {"a"}, names
        if not path.exists():
            return None
        (text,) = {(path / "deep" / name).read_text() for name in "xy"}
        return text

    for name in others:
        (folder / name).mkdir()
        (folder / name / "mine").touch()
    if there:
        fill(path, "old")
    before, total = contents(), 0
    seen: list[str | None] = []
    for at in every_kill(folder, put, copy_of(folder, "begin")):
        again = copy_of(folder, "killed")
        results = set()
        for second in every_kill(folder, lambda: repair(path), again):
            repair(folder if second % 2 else path)
            results.add(contents())
            total += 1
        repair(path)
        assert results <= {contents()}, f"kill {at}: a repair that was killed gave {results}"
        seen.append(contents())
        again()
        put()
        assert contents() == "new", f"kill {at}"
    assert seen == sorted(seen, key=lambda text: text == "new"), seen
    assert set(seen) == {before, "new"}, seen
    return total


class Run:
    """Rows written one after another, with a checkpoint after every so many, as a driver does it.

    Args:
        folder: of the file and the checkpoints. make: makes the sink or log. rows: what it writes.
    """

    def __init__(self, folder: Path, make: Callable[[], Any], rows: list[Any], every: int):
        self.folder, self.make, self.rows, self.every = folder, make, rows, every

    def __call__(self) -> None:
        """Begin, or go on from the checkpoint, to the end."""
        sink = self.make()
        if (self.folder / "checkpoint").exists():
            found = json.loads((self.folder / "checkpoint").read_text())
            sink.set_state(found["state"])
        else:
            found = {"rows": 0}
            self.save(sink.state(), 0)
        with contextlib.ExitStack() as stack:
            # Also after an error, as a hook does.
            stack.callback(sink.close)
            sink.open()
            for number, rows in enumerate(self.rows[found["rows"] :], found["rows"] + 1):
                sink.write(rows)
                if number % self.every == 0:
                    self.save(sink.state(), number)

    def save(self, state: Any, rows: int) -> None:
        (self.folder / "part").write_text(json.dumps({"state": state, "rows": rows}))
        os.replace(self.folder / "part", self.folder / "checkpoint")


def sweep_run(
    folder: Path,
    make: Callable[[], Any],
    rows: list[Any],
    read: Callable[[Path], Any],
    every: int = 2,
    forks: bool = True,
    check: Callable[[Path, Any], None] = lambda folder, wanted: None,
) -> int:
    """A run killed at every change, and one that goes back to each of its checkpoints killed at every change:
    called to the end, the contents are those of a run that nobody killed. After each kill `check` looks."""
    run, total = Run(folder, make, rows, every), 0
    empty = copy_of(folder, "empty")
    run()
    wanted = read(folder)

    def kills(work: Callable[[], None], prepare: Callable[[], None]) -> Iterator[int]:
        prepare()
        return every_kill(folder, work, prepare) if forks else every_moment(folder, work)

    for at in kills(run, empty):
        check(folder, wanted)
        run()
        assert read(folder) == wanted, f"killed at change {at}, then called to the end"
        total += 1
    # All rows are there, and the checkpoint says less.
    checkpoints = []
    empty()
    sink = make()
    checkpoints.append((sink.state(), 0))
    sink.open()
    for number, row in enumerate(rows, 1):
        sink.write(row)
        checkpoints.append((sink.state(), number))
    sink.close()
    # The last one says that all of them are there.
    del checkpoints[-1]
    written = copy_of(folder, "written")
    for state, number in checkpoints:
        written()
        run.save(json.loads(json.dumps(state)), number)
        for at in kills(lambda state=state: make().set_state(state), copy_of(folder, "end")):
            check(folder, wanted)
            run()
            assert read(folder) == wanted, f"cut to {number} rows, killed at change {at}, then to the end"
            total += 1
    return total


def frame(number: int) -> Any:
    """Two systems, with `info` and an extra."""
    rng = np.random.default_rng(number)
    systems = []
    for n in (1 + number % 3, 2):
        atoms = Atoms("Ar" * n, positions=rng.normal(size=(n, 3)), info={"title": f"{number}"})
        atoms.set_array("site", rng.integers(0, 5, n))
        systems.append(AtomicData.from_ase(atoms))
    return HostBatch.from_data_list(systems)


def store_contents(folder: Path) -> Any:
    """Counts and all valid rows, without zarr; names of all other files."""
    path = folder / "a.zarr"
    attributes = attributes_of(path)
    attributes["columns"] = dict(sorted(attributes["columns"].items()))
    columns = open_columns(path, attributes)
    rows = {name: column.last(column.length).tobytes() for name, column in columns.items()}
    odd = [p.name for p in path.rglob("*") if p.suffix in (".new", ".begun")]
    assert set(rows) == {p.name for p in path.iterdir() if p.is_dir()}
    return attributes, rows, odd, sorted(p.name for p in folder.iterdir())


def check_store(folder: Path, wanted: Any) -> None:
    """A reader finds as many rows as the store says, and they are those of the whole run."""
    path = folder / "a.zarr"
    if (path / "zarr.json").exists():
        for name, column in open_columns(path, attributes_of(path)).items():
            rows = column.last(column.length)
            assert len(rows) == column.length, name
            assert wanted[1][name].startswith(rows.tobytes()), name


def check_structures(folder: Path, wanted: Any) -> None:
    """A reader finds all structures that the file says it has."""
    if (folder / "a").exists():
        assert len(list(AseTrajectory(folder / "a").structures())) == len(AseTrajectory(folder / "a"))


def file_contents(folder: Path) -> Any:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "checkpoint"}


def table(step: int) -> dict[str, np.ndarray]:
    return {"step": np.full(2, step), "system_id": np.arange(2), "energy": np.array([0.1 * step, np.nan])}


def event_contents(folder: Path) -> Any:
    """The points of all event files, in order, and whether a file has no points."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            n = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + n])
            found += [(event.step, value.tag, repr(value.simple_value)) for value in event.summary.value]
            data = data[16 + n :]
    return sorted(found), sorted(p.name for p in folder.iterdir() if not p.name.startswith("events"))


def sweep_zarr(folder: Path, frames: int = 2, every: int = 1, forks: bool = False, **options: Any) -> int:
    make = lambda: ZarrData(folder / "a.zarr", **options)  # noqa: E731
    return sweep_run(
        folder, make, [frame(k) for k in range(frames)], store_contents, every, forks, check_store
    )


def sweep_wide(folder: Path) -> int:
    """A store with so many extras that its attributes take more than a page."""

    def wide(number: int) -> Any:
        host = frame(number)
        extras = {f"a rather long name {k}": np.full(len(host), 1.0 * number) for k in range(60)}
        return host.replace(system_extras=extras)

    make = lambda: ZarrData(folder / "a.zarr")  # noqa: E731
    return sweep_run(folder, make, [wide(1)], store_contents, 1, False, check_store)


def sweep_text(folder: Path, kind: Any) -> int:
    check = check_structures if kind is AseTrajectory else lambda folder, wanted: None
    rows = [frame(k) for k in range(5)]
    return sweep_run(folder, lambda: kind(folder / "a"), rows, file_contents, check=check)


def sweep_csv(folder: Path) -> int:
    make = lambda: CSVWriter(folder / "a.csv", ["step", "system_id", "energy"], "w")  # noqa: E731
    return sweep_run(folder, make, [table(k) for k in range(5)], file_contents)


def sweep_events(folder: Path) -> int:
    return sweep_run(folder, lambda: TensorBoardWriter(folder), [table(k) for k in range(3)], event_contents)


def sweep_old_store(folder: Path) -> int:
    """A store that was written before two of its columns existed: it is read after each kill, and goes on."""
    from alchemi_jax.io.sinks.stored import StoredSystems

    path = folder / "a.zarr"
    ZarrData(path).write(frame(0))
    attributes = attributes_of(path)
    for name in ("time", "fixed_components"):
        del attributes["columns"][name]
        shutil.rmtree(path / name)
    put_attributes(path, attributes)
    older, total = copy_of(folder, "older"), 0
    write = lambda number: ZarrData(path).write(frame(number))  # noqa: E731
    write(1)
    wanted = store_contents(folder)
    older()
    for at in every_moment(folder, lambda: write(1)):
        found = StoredSystems(path)
        assert found.n_systems in (2, 4), at
        assert np.isnan(found.field("time")[1][:2]).all(), at
        assert not found.field("fixed_components")[1][:2].any(), at
        if found.n_systems == 2:
            write(1)
        assert store_contents(folder) == wanted, at
        total += 1
    return total


CASES = {
    "old-store": sweep_old_store,
    "replace": sweep_replace,
    "replace-nothing": lambda folder: sweep_replace(folder, there=False),
    "zarr": sweep_zarr,
    "shards": lambda folder: sweep_zarr(folder, 4, 2, chunk_bytes=32, shard_bytes=64, mode="w"),
    "wide": sweep_wide,
    "zarr-forked": lambda folder: sweep_zarr(folder, 4, 2, True, chunk_bytes=32),
    "extxyz": lambda folder: sweep_text(folder, ExtXYZ),
    "traj": lambda folder: sweep_text(folder, AseTrajectory),
    "csv": sweep_csv,
    "events": sweep_events,
}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        place = Path(sys.argv[1]).resolve() / name
        place.mkdir()
        print(f"{name}: {CASES[name](place)} kills", flush=True)
