"""`python -m benchmarks.sizes`: the same frames in several formats, MB and seconds.

W2's 32 crystals of 256 argon atoms, NVE in float32, 50 frames 50 steps apart. TorchSim's layout is
written with PyTables as its TorchSimTrajectory (0.3.0) does by default: a file a system, zlib of level 1
with shuffling, float32; masses, numbers and pbc once; here with velocities, forces and energy asked for.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, HostMemory, Sink, ZarrData
from alchemi_jax.models import LennardJones
from benchmarks import structures
from benchmarks.workloads import moving


def frames(n: int, systems: int, dtype: str) -> list[Batch]:
    """What the formats get."""
    batch = moving(structures.crystals(systems), dtype)
    sink = HostMemory()
    model = LennardJones(epsilon=structures.EPSILON, sigma=structures.SIGMA, cutoff=structures.CUTOFF)
    engine = NVE(model=model, dt=4.0, n_steps=50 * n, hooks=[SnapshotHook(sink, frequency=50)])
    engine.run(batch)
    whole = sink.read()
    return [whole.take(np.arange(k * systems, (k + 1) * systems)) for k in range(n)]


def ours(make: Callable[[Path], Sink]) -> Callable[[Path, list[Batch]], None]:
    """Writes frames to a sink that a run holds open."""

    def write(path: Path, batches: list[Batch]) -> None:
        sink = make(path)
        sink.open()
        for batch in batches:
            sink.write(batch)
        sink.close()

    return write


def torchsim(path: Path, batches: list[Batch]) -> None:
    """The arrays of TorchSim's default file of each system."""
    import tables

    path.mkdir()
    filters = tables.Filters(complib="zlib", shuffle=True, complevel=1)
    first = batches[0]
    atoms = [slice(a, a + n) for a, n in zip(first.first_atom, first.atoms_per_system, strict=True)]
    files = [tables.open_file(str(path / f"{i}.h5"), "w", filters=filters) for i in range(len(atoms))]

    def put(file: tables.File, name: str, value: np.ndarray, step: int) -> None:
        value = np.asarray(value)[None]
        if f"/data/{name}" not in file:
            atom = tables.Atom.from_dtype(value.dtype)
            file.create_earray("/data", name, atom, (0, *value.shape[1:]), createparents=True)
            file.create_earray("/steps", name, tables.Int32Atom(), (0,), createparents=True)
        file.get_node(f"/data/{name}").append(value)
        file.get_node(f"/steps/{name}").append([step])

    for k, batch in enumerate(batches):
        for i, (file, of) in enumerate(zip(files, atoms, strict=True)):
            if k == 0:
                once = {"masses": batch.masses[of], "atomic_numbers": batch.numbers[of], "pbc": batch.pbc[i]}
                for name, value in once.items():
                    put(file, name, value, 0)
            for name in ("positions", "velocities", "forces"):
                put(file, name, batch[name][of].astype(np.float32), 50 * k)
            put(file, "cell", batch.cell[i].astype(np.float32), 50 * k)
            put(file, "potential_energy", batch.energy[i : i + 1].astype(np.float32), 50 * k)
    for file in files:
        file.close()


FORMATS: dict[str, Callable[[Path, list[Batch]], None]] = {
    "ZarrData": ours(ZarrData),
    'ZarrData, compression="zstd"': ours(lambda path: ZarrData(path, compression="zstd")),
    "ZarrData, compression=None": ours(lambda path: ZarrData(path, compression=None)),
    "AseTrajectory (.traj)": ours(AseTrajectory),
    "ExtXYZ, eight decimals": ours(ExtXYZ),
    "TorchSim's HDF5": torchsim,
}


def size(path: Path) -> int:
    """Bytes of a file, or of the files below a folder."""
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def measured(batches: list[Batch]) -> list[tuple[str, int, int, float]]:
    """Format, bytes, files, and seconds of writing; without what is not installed."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, write) in enumerate(FORMATS.items()):
            path = Path(folder) / str(i)
            begun = time.perf_counter()
            try:
                write(path, batches)
            except ImportError as e:
                print(f"{name}: not measured, {e}.")
                continue
            took = time.perf_counter() - begun
            out.append((name, size(path), sum(p.is_file() for p in [path, *path.rglob("*")]), took))
    return out


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--systems", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    batches = frames(args.frames, args.systems, args.dtype)
    atoms = sum(len(b.batch_idx) for b in batches)
    print(f"{'format':32}{'MB':>8}{'bytes/atom':>12}{'files':>7}{'s':>8}")
    for name, n_bytes, files, took in measured(batches):
        print(f"{name:32}{n_bytes / 1e6:8.1f}{n_bytes / atoms:12.1f}{files:7}{took:8.2f}")


if __name__ == "__main__":
    main()
