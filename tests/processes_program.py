"""What `test_processes.py` checks with two processes, each of which runs this: ADDRESS RANK FOLDER WHEN.

WHEN is "killed": process 1 dies in the middle of a run. "again": the same command after it, and the rest.
"""

import os
import signal
import sys
import warnings
from pathlib import Path

import jax
import numpy as np


jax.config.update("jax_enable_x64", True)
warnings.simplefilter("error")
# ASE 3.29 does so under numpy 2.5.
warnings.filterwarnings("ignore", "Setting the shape on a NumPy array")

from alchemi_jax import distributed  # noqa: E402


ADDRESS, RANK, FOLDER, WHEN = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
# Before anything makes an array.
assert distributed.initialize(ADDRESS, 2, RANK, heartbeat_seconds=2) == (RANK, 2)

import cheap_xla  # noqa: E402
from conftest import cluster  # noqa: E402

from alchemi_jax import Batch, Trajectory  # noqa: E402
from alchemi_jax.dynamics import NVTLangevin, Sampler, sweep  # noqa: E402
from alchemi_jax.dynamics.hooks import CheckpointHook, LoggingHook, ReplicaExchangeHook, SnapshotHook  # noqa: E402
from alchemi_jax.dynamics.sinks import ZarrData  # noqa: E402
from alchemi_jax.dynamics.stage import DynamicsStage  # noqa: E402
from alchemi_jax.io.parts import part_paths  # noqa: E402
from alchemi_jax.models import HarmonicModel  # noqa: E402


STRUCTURES = [cluster(n, n) for n in (5, 9, 4, 6)]
MODEL = HarmonicModel(k=1.0)
KEY = jax.random.key(3)
#: On 0.12 sums can depend on the number of rows.
EXACT = jax.__version__.startswith("0.10.")


class At:
    """Calls a function at a step of this process."""

    stage, frequency, follows_systems = DynamicsStage.AFTER_STEP, 1, True

    def __init__(self, step, call):
        self.step, self.call, self.seen = step, call, []

    def __call__(self, ctx, stage):
        self.seen.append((int(ctx.step_count), ctx.global_rank, ctx.world_size))
        if ctx.step_count == self.step:
            self.call()


def engine(*hooks):
    return NVTLangevin(model=MODEL, dt=1.0, temperature=50.0, friction=0.01, n_steps=40, hooks=list(hooks))


def dynamics(folder, hook):
    """A run with a store, a log and checkpoints in a folder."""
    frames = SnapshotHook(ZarrData(folder / "traj.zarr"), 10, stage=DynamicsStage.BEFORE_STEP, final=True)
    log = LoggingHook(log_path=folder / "log.csv", frequency=10)
    save = CheckpointHook(folder / "saved", frequency=5)
    return engine(frames, log, save, hook).run(Batch.from_ase(STRUCTURES), key=KEY, resume=folder / "saved")


def read_log(folder):
    rows = [row for part in part_paths(folder / "log.csv") for row in part.read_text().splitlines()[1:]]
    return sorted(rows)


def check_values(a, b):
    assert np.array_equal(a, b) if EXACT else np.allclose(a, b, 1e-10, 1e-10)


def check_same(one, other):
    """Two batches, field by field, in the same order."""
    for name in ("positions", "velocities", "energy", "steps_taken", "outcome", "system_id"):
        n = one.num_systems if getattr(one, name).shape[0] == one.system_capacity else one.num_atoms
        a, b = (np.asarray(getattr(batch, name))[:n] for batch in (one, other))
        check_values(a, b)


def same_everywhere(out):
    """All processes have the same."""
    assert len(set(distributed.gather(np.asarray(out.positions).tobytes()))) == 1


def fails(work, kind, text):
    """In process 0 or 1 it fails with its own error, in the other because of that."""
    try:
        work()
    except (kind, distributed.OtherProcessError) as e:
        found = e
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert text in str(found), found
    return type(found).__name__


def check_run(folder):
    """The run that was killed goes on; results, frames and rows are those of one process."""
    hook = At(-1, None)
    out = dynamics(folder, hook)
    rank = distributed.world().rank
    assert {(r, n) for _, r, n in hook.seen} <= {(rank, 2)}
    # Process 1 was killed at step 20, process 0 had come to its end.
    assert len(hook.seen) in ((0,) if rank == 0 else range(20, 26)), hook.seen
    same_everywhere(out)
    if rank:
        return
    whole = Path(f"{folder}-whole")
    with distributed.alone():
        whole.mkdir()
        wanted = dynamics(whole, At(-1, None))
    check_same(out, wanted)
    assert [meta.name for meta in out.meta] == [meta.name for meta in wanted.meta]
    frames, of_one = Trajectory(folder / "traj.zarr"), Trajectory(whole / "traj.zarr")
    assert (len(frames), frames.n_rows, frames.fields) == (len(of_one), of_one.n_rows, of_one.fields)
    for name in ("positions", "energy", "system_id", "steps_taken"):
        check_values(frames[name][:], of_one[name][:])
    check_values(frames.system(2).velocities, of_one.system(2).velocities)
    assert [a.info for a in frames.to_ase(1)] == [a.info for a in of_one.to_ase(1)]
    assert len(ZarrData(folder / "traj.zarr")) == of_one.n_rows
    if EXACT:
        assert read_log(folder) == read_log(whole)


def check_stream():
    """Each process takes its systems of a stream, and all get all."""
    sampler = Sampler(iter(STRUCTURES), max_systems=2)
    out = engine().run(sampler=sampler, key=KEY)
    assert sampler.traffic.systems == 2
    assert np.asarray(out.system_id)[:4].tolist() == [0, 1, 2, 3]
    same_everywhere(out)
    if distributed.world().rank == 0:
        with distributed.alone():
            check_same(out, engine().run(sampler=Sampler(STRUCTURES, max_systems=2), key=KEY))


def check_errors():
    """An error of one ends all and is told once; the next run is not disturbed by it."""
    rank, _ = distributed.world()

    def breaks():
        raise OSError("the disk is gone")

    hook = At(5, breaks if rank == 1 else lambda: None)
    found = fails(lambda: engine(hook).run(Batch.from_ase(STRUCTURES), key=KEY), OSError, "the disk is gone")
    assert found == ("OtherProcessError" if rank == 0 else "OSError")
    mine = STRUCTURES[: 4 - rank]
    kinds = distributed.gather(
        fails(
            lambda: engine().run(Batch.from_ase(mine)), ValueError, "process 1 of 2 was given another batch"
        )
    )
    # Both see it, and one says it.
    assert sorted(kinds) == ["OtherProcessError", "ValueError"]
    fails(lambda: engine().run(sampler=Sampler(mine)), ValueError, "another source of the sampler")
    batch = Batch.from_ase(STRUCTURES)
    fails(
        lambda: engine(ReplicaExchangeHook([50.0] * 4, frequency=5)).run(batch),
        ValueError,
        "run it in one process",
    )
    for_one = fails(lambda: sweep(engine(), batch, temperature=[10.0, 20.0]), ValueError, "start one")
    assert for_one == "ValueError"
    assert distributed.gather(rank) == [0, 1]


if __name__ == "__main__":
    cheap_xla.switch_on()
    if WHEN == "killed":
        die = At(20 if RANK == 1 else -1, lambda: os.kill(os.getpid(), signal.SIGKILL))
        dynamics(FOLDER, die)
        raise AssertionError("the other process was killed")
    check_run(FOLDER)
    check_stream()
    check_errors()
    print("all is well")
